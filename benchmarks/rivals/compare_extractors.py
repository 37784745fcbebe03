"""Times dydit's networks of features against PyTorch (eager and compiled) and OpenVINO, and prints one table.

    benchmarks/rivals/setup
    build/rivals/bin/python benchmarks/rivals/compare_extractors.py --weights FOLDER [--networks resnet56,lite0,inception --rounds 7]

All programs are started and warmed first, then take turns, a lap each, so that a busy minute hits all of them; medians count. Every
rival competes in its faster precision and memory format. dydit's laps include the resize and run in its own process; FOLDER holds the
file of ResNet-56, EfficientNet-Lite0's is that of scripts/fetch-weights, the Inception has weights by recipe. Images a second of
processors' time are given as well: on a busy machine they are what can be compared.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess

from turns import best_worker, medians_of_turns

ROOT = pathlib.Path(__file__).resolve().parents[2]
RIVALS = {"eager": (["--dtype=f32"], ["--dtype=f32", "--channels-last"], ["--dtype=bf16", "--channels-last"]),
          "compile": (["--dtype=f32"],), "openvino": (["--dtype=f32"], ["--dtype=bf16"])}
BATCHES = {"resnet56": (256, 32), "lite0": (32, 224), "inception": (8, 299)}  # and the side of the images


def bench_dydit(network, args):
    """Images a second by the clock; by processors' time from runs of one lap and of five, whose starts cost the same."""
    batch, side = BATCHES[network]
    weights = {"inception": "recipe:inception", "lite0": str(ROOT / "build/weights")}.get(network, args.weights)

    def run(laps):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run([args.dydit, "bench", f"--extractor={network}", f"--weights={weights}", f"--batch={batch}", f"--side={side}",
                              f"--threads={args.threads}", f"--repeats={laps}", "--json", "--quiet"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return json.loads(out.stdout)["images_per_second"], after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    (_, short), (rate, long) = run(1), run(5)
    return rate, 4 * batch / (long - short)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dydit", default=str(ROOT / "build/release/dydit"))
    parser.add_argument("--weights", default=str(ROOT / "../shared/data"), help="folder of resnet56-4bfd9763.th")
    parser.add_argument("--networks", default=",".join(BATCHES))
    parser.add_argument("--rivals", default="eager,compile,openvino")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    print("| network | program | images/s | a second of processors | dydit over it |\n|---|---|---|---|---|")
    for network in args.networks.split(","):
        workers = [best_worker("extractors_torch.py", [f"--rival={rival}", f"--network={network}", f"--batch={BATCHES[network][0]}",
                                                       f"--threads={args.threads}"], RIVALS[rival], max, f"{network} {rival}")
                   for rival in args.rivals.split(",")]
        medians = medians_of_turns(args.rounds, lambda: bench_dydit(network, args), workers)
        own = next(iter(medians.values()))
        for label, (rate, processors) in medians.items():
            print(f"| {network} | {label} | {rate:.1f} | {processors:.1f} | {own[0] / rate:.2f} ({own[1] / processors:.2f}) |", flush=True)


if __name__ == "__main__":
    main()
