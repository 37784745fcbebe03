"""Times dydit's forwards against PyTorch eager, torch.compile, OpenVINO and the masked DyDiT, and prints one table.

    benchmarks/rivals/setup
    build/rivals/bin/python benchmarks/rivals/compare_inference.py [--cases XL,S --rounds 7 --csv inference.csv]

All programs are started and warmed first, then take turns, a lap each, so that a busy minute hits all of them; the
median lap counts. Random weights of the same shapes, bfloat16, the same number of threads. PyTorch's programs compete
twice: as the plain module with scaled_dot_product_attention, and with attention written as matmul, softmax, matmul.
So does the masked DyDiT: as published (attention written out, float32 weights under autocast) and with all of it
converted to bfloat16. OpenVINO is tried with the batch whole and shared out to a stream a thread, and the faster
setting competes.
"""

import argparse
import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys

from turns import Worker

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES = {"XL": ("XL/2", 2), "S": ("S/2", 16)}
MATMUL = "--no-fused-attention"
# What competes, and its settings, of which the faster does.
RIVALS = {
    "openvino": (["--rival=openvino"], ["--rival=openvino", "--streams={threads}"]),
    "compile": (["--rival=compile"],),
    "compile, matmul attention": (["--rival=compile", MATMUL],),
    "eager": (["--rival=eager"],),
    "eager, matmul attention": (["--rival=eager", MATMUL],),
    "masked, as published": (["--rival=masked", MATMUL, "--autocast"],),
    "masked, all bfloat16": (["--rival=masked"], ["--rival=masked", MATMUL]),
}
TRIALS = 2  # laps of every setting before the rounds
STEPS = 10  # forwards of a turn of dydit: they share the cost of reading adaLN's weights, as 40 or so do in a run
SHARES = ("--heads=.5", "--groups=.5", "--tokens=.75")
PAPER_SHARES = ("--heads=.5625", "--groups=.5625", "--tokens=.78")


def best_worker(rival, size, batch, args):
    """The rival at its fastest setting."""
    best = None
    for setting in RIVALS[rival]:
        setting = [part.format(threads=args.threads) for part in setting]
        worker = Worker([sys.executable, pathlib.Path(__file__).with_name("infer_torch.py"), f"--size={size}",
                         f"--batch={batch}", f"--threads={args.threads}", *setting], stderr=subprocess.DEVNULL)
        trial = min(worker.lap()[0] for _ in range(TRIALS))
        print(f"{' '.join(setting)}: {trial:.1f} ms/sample", file=sys.stderr)
        if best and best[1] <= trial:
            worker.close()
            continue
        if best:
            best[0].close()
        best = (worker, trial)
    return best[0]


def bench_dydit(size, batch, shares, args):
    """One turn of the static and the dynamic model, after its own warm-up."""
    out = subprocess.run([args.dydit, "bench", f"--size=DiT-{size}", f"--batch={batch}", f"--threads={args.threads}",
                          "--dtype=bf16", f"--steps={STEPS}", "--repeats=1", "--json", "--quiet", *shares],
                         capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dydit", default=str(ROOT / "build/release/dydit"))
    parser.add_argument("--cases", default="XL,S")
    parser.add_argument("--rivals", default="openvino,compile,eager,masked",
                        help="what their names in the table begin with")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--csv", help="also write the table's rows here")
    args = parser.parse_args()
    for name in args.rivals.split(","):
        if not any(rival.startswith(name) for rival in RIVALS):
            parser.error(f"--rivals: no rival begins with {name!r}; there are: {'; '.join(RIVALS)}")
    return args


def main():
    args = parse_args()
    rows = []
    for case in args.cases.split(","):
        size, batch = CASES[case]
        workers = {rival: best_worker(rival, size, batch, args)
                   for rival in RIVALS if rival.startswith(tuple(args.rivals.split(",")))}
        laps = {name: [] for name in (*workers, "static", "dynamic", "dynamic .49")}
        turns = []
        for turn in range(args.rounds):
            for shares, name in ((SHARES, "dynamic"), (PAPER_SHARES, "dynamic .49")):
                result = bench_dydit(size, batch, shares, args)
                turns.append(result)
                laps["static"].append(result["static"]["ms_per_sample"])
                laps[name].append(result["dynamic"]["ms_per_sample"])
                if name == "dynamic":
                    laps.setdefault("realised", []).append(result["realised_share"])
                    laps.setdefault("peak_share", []).append(result["static"]["peak_share"])
            for rival, worker in workers.items():
                laps[rival].append(worker.lap()[0])
            print(f"{case}: turn {turn + 1} of {args.rounds}", file=sys.stderr)
        medians = {name: statistics.median(values) for name, values in laps.items()}
        processor, version = turns[0]["processor"], turns[0]["version"]
        print(f"\nDiT-{size}, batch {batch}, {args.threads} threads, bf16, {processor}; medians of {args.rounds}\n")
        print("| program | ms/sample | static over it | dynamic (.49) over it |\n|---|---|---|---|")
        for name in (*workers, "static", "dynamic", "dynamic .49"):
            label = f"{name} ({workers[name].version})" if name in workers else f"dydit {version}, {name}"
            row = {"model": size, "batch": batch, "program": label, "ms_per_sample": round(medians[name], 2),
                   "static_over_it": round(medians[name] / medians["static"], 3),
                   "dynamic_over_it": round(medians[name] / medians["dynamic .49"], 3)}
            rows.append(row)
            print(f"| {label} | {row['ms_per_sample']} | {row['static_over_it']}x | {row['dynamic_over_it']}x |")
        print(f"\nrealised share {medians['realised']:.3f} (heads .5, groups .5, tokens .75); static at "
              f"{100 * medians['peak_share']:.1f} % of the measured peak", flush=True)
        for worker in workers.values():
            worker.close()
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
