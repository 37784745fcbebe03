"""Times dydit's networks of features against PyTorch (eager and compiled) and OpenVINO, and prints one table.

    benchmarks/rivals/setup
    build/rivals/bin/python benchmarks/rivals/compare_extractors.py --weights FOLDER [--networks resnet56,lite0,inception --rounds 7]

All programs are started and warmed first, then take turns, a lap each, so that a busy minute hits all of them; medians count. Every
rival competes in its faster precision and memory format. dydit's laps include the resize and run in its own process; FOLDER holds the
files of ResNet-56 and EfficientNet-Lite0 (scripts/fetch-weights), the Inception has weights by recipe. Images a second of processors'
time are given as well: on a busy machine they are what can be compared.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys

from compare_vae import Worker

ROOT = pathlib.Path(__file__).resolve().parents[2]
RIVALS = {"eager": (["--dtype=f32"], ["--dtype=f32", "--channels-last"], ["--dtype=bf16", "--channels-last"]),
          "compile": (["--dtype=f32"],), "openvino": (["--dtype=f32"], ["--dtype=bf16"])}
BATCHES = {"resnet56": (256, 32), "lite0": (32, 224), "inception": (8, 299)}  # and the side of the images


def best_worker(rival, network, args):
    """The rival at its fastest setting."""
    best = None
    for setting in RIVALS[rival]:
        worker = Worker([sys.executable, pathlib.Path(__file__).with_name("extractors_torch.py"), f"--rival={rival}", f"--network={network}",
                         f"--batch={BATCHES[network][0]}", f"--threads={args.threads}", *setting])
        trial = max(worker.lap()[1] for _ in range(3))
        print(f"{network} {rival} {' '.join(setting)}: {trial:.1f} images a second of processors", file=sys.stderr)
        if best and best[1] >= trial:
            worker.close()
            continue
        if best:
            best[0].close()
        best = (worker, trial, " ".join(part.removeprefix("--").removeprefix("dtype=") for part in setting))
    return best[0], best[2]


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
        workers = {rival: best_worker(rival, network, args) for rival in args.rivals.split(",")}
        laps = {name: [] for name in ("dydit", *workers)}
        for _ in range(args.rounds):
            laps["dydit"].append(bench_dydit(network, args))
            for rival, (worker, _) in workers.items():
                laps[rival].append(worker.lap())
        medians = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in laps.items()}
        for name, (rate, processors) in medians.items():
            label = f"{workers[name][0].version}, {workers[name][1]}" if name in workers else "dydit, f32"
            print(f"| {network} | {label} | {rate:.1f} | {processors:.1f} | {medians['dydit'][0] / rate:.2f} "
                  f"({medians['dydit'][1] / processors:.2f}) |", flush=True)
        for worker, _ in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
