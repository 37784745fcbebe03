"""Times dydit's autoencoders against PyTorch eager and OpenVINO, and prints one table.

    benchmarks/rivals/setup
    build/rivals/bin/python benchmarks/rivals/compare_vae.py [--cases sd-decode,taef2-decode --sides 256 --rounds 7]

All programs are started and warmed first, then take turns, a call each, so that a busy minute hits all of them; medians
count. Every rival competes in its faster precision and, PyTorch, memory format. Stable Diffusion's size has random
weights; taef2's files are those of --taef2. Seconds of processors are given as well: on a busy machine they are what
can be compared.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from turns import best_worker, medians_of_turns

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES = ("sd-encode", "sd-decode", "taef2-encode", "taef2-decode")
RIVALS = {"eager": (["--dtype=f32"], ["--dtype=f32", "--channels-last"], ["--dtype=bf16"]),
          "openvino": (["--dtype=f32"], ["--dtype=bf16"])}


def bench_dydit(vae, half, side, args):
    out = subprocess.run([args.dydit, "bench", f"--vae={vae}", f"--side={side}", f"--threads={args.threads}", "--batch=1",
                          "--repeats=1", "--json", "--quiet"], capture_output=True, text=True, check=True)
    result = json.loads(out.stdout)[half]
    return result["seconds"], result["cpu_seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dydit", default=str(ROOT / "build/release/dydit"))
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--sides", default="256")
    parser.add_argument("--rivals", default="eager,openvino")
    parser.add_argument("--taef2", type=pathlib.Path, default=ROOT / "../shared/data", help="folder of taef2_*.pth")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sd = pathlib.Path(folder, "sd")
        subprocess.run([sys.executable, pathlib.Path(__file__).with_name("vae_torch.py"), f"--export={sd}"], check=True)
        print("| case | program | seconds | of processors | over dydit |\n|---|---|---|---|---|")
        for case in args.cases.split(","):
            kind, half = case.split("-")
            vae = sd if kind == "sd" else args.taef2
            for side in map(int, args.sides.split(",")):
                workers = [best_worker("vae_torch.py", [f"--rival={rival}", f"--vae={vae}", f"--half={half}", f"--side={side}",
                                                        f"--threads={args.threads}"], RIVALS[rival], min, f"{case} {rival}")
                           for rival in args.rivals.split(",")]
                medians = medians_of_turns(args.rounds, lambda: bench_dydit(vae, half, side, args), workers)
                own = next(iter(medians.values()))
                for label, (seconds, processors) in medians.items():
                    print(f"| {case} {side} | {label} | {seconds:.3f} | {processors:.3f} | "
                          f"{seconds / own[0]:.2f} ({processors / own[1]:.2f}) |", flush=True)


if __name__ == "__main__":
    main()
