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
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES = ("sd-encode", "sd-decode", "taef2-encode", "taef2-decode")
RIVALS = {"eager": (["--dtype=f32"], ["--dtype=f32", "--channels-last"], ["--dtype=bf16"]),
          "openvino": (["--dtype=f32"], ["--dtype=bf16"])}


class Worker:
    """A process that answers a line with seconds an image, of the clock and of processors."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = self.process.stdout.readline().split(maxsplit=1)
        if not ready:
            raise RuntimeError(f"{' '.join(map(str, command))}: ended before it was ready")
        self.version = ready[1].strip()

    def lap(self):
        print(file=self.process.stdin, flush=True)
        return tuple(float(word) for word in self.process.stdout.readline().split())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def best_worker(rival, vae, half, side, args):
    """The rival at its fastest setting."""
    best = None
    for setting in RIVALS[rival]:
        worker = Worker([sys.executable, pathlib.Path(__file__).with_name("vae_torch.py"), f"--rival={rival}", f"--vae={vae}",
                         f"--half={half}", f"--side={side}", f"--threads={args.threads}", *setting])
        trial = min(worker.lap()[1] for _ in range(2))
        print(f"{rival} {' '.join(setting)}: {trial:.3f} s of processors", file=sys.stderr)
        if best and best[1] <= trial:
            worker.close()
            continue
        if best:
            best[0].close()
        best = (worker, trial, " ".join(part.removeprefix("--").removeprefix("dtype=") for part in setting))
    return best[0], best[2]


def bench_dydit(vae, half, side, args):
    out = subprocess.run([args.dydit, "bench", f"--vae={vae}", f"--side={side}", f"--threads={args.threads}", "--batch=1",
                          "--repeats=1", "--json", "--quiet"], capture_output=True, text=True, check=True)
    return json.loads(out.stdout)[half]


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
                workers = {rival: best_worker(rival, vae, half, side, args) for rival in args.rivals.split(",")}
                laps = {name: [] for name in ("dydit", *workers)}
                for _ in range(args.rounds):
                    result = bench_dydit(vae, half, side, args)
                    laps["dydit"].append((result["seconds"], result["cpu_seconds"]))
                    for rival, (worker, _) in workers.items():
                        laps[rival].append(worker.lap())
                medians = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in laps.items()}
                for name, (seconds, processors) in medians.items():
                    label = f"{workers[name][0].version}, {workers[name][1]}" if name in workers else "dydit, f32"
                    print(f"| {case} {side} | {label} | {seconds:.3f} | {processors:.3f} | "
                          f"{seconds / medians['dydit'][0]:.2f} ({processors / medians['dydit'][1]:.2f}) |", flush=True)
                for worker, _ in workers.values():
                    worker.close()


if __name__ == "__main__":
    main()
