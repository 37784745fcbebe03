"""Times dydit's forwards against PyTorch eager, torch.compile, OpenVINO and the masked DyDiT, and prints one table.

    benchmarks/rivals/setup
    build/rivals/bin/python benchmarks/rivals/compare_inference.py [--cases XL,S,U-ViT --rounds 7 --csv inference.csv]

All programs are started and warmed first, then take turns, a lap each, so that a busy minute hits all of them; the
median lap counts. Random weights of the same shapes, the same number of threads, each at its best precision: every rival is
tried for a lap in float32 and in bfloat16 (OpenVINO also with the f16 hint, and shared out to a stream a thread), and the
fastest setting competes; --dtypes leaves some out. PyTorch's programs are tried as the plain module with
scaled_dot_product_attention and with attention written as matmul, softmax, matmul. The masked DyDiT competes as published (attention
written out, float32 weights under autocast) and as the faster of float32 and bfloat16. OpenVINO's int8 (NNCF, weights and activations)
competes apart, against dydit's int8 where the processor has that. dydit takes --dtype auto.
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
# Size, batch, and forwards of a turn of dydit: those of XL share the cost of reading adaLN's weights, as 40 or so do in a run.
CASES = {"XL": ("DiT-XL/2", 2, 10), "S": ("DiT-S/2", 16, 4), "SiT": ("SiT-S/2", 16, 4), "U-ViT": ("U-ViT-S/2", 8, 3)}
MATMUL = "--no-fused-attention"
# What competes, and its settings, of which the faster does.
STREAMS = "--streams={threads}"
RIVALS = {
    "openvino": [["--rival=openvino", streams, f"--dtype={dtype}"] for dtype in ("f32", "bf16", "f16")
                 for streams in (STREAMS, "--streams=1")],
    "openvino int8": [["--rival=openvino", streams, "--dtype=int8"] for streams in (STREAMS, "--streams=1")],
    "compile": [["--rival=compile", f"--dtype={dtype}", *more] for dtype in ("f32", "bf16") for more in ([], [MATMUL])],
    "eager": [["--rival=eager", f"--dtype={dtype}", *more] for dtype in ("f32", "bf16") for more in ([], [MATMUL])],
    "masked, as published": [["--rival=masked", MATMUL, "--autocast"]],
    "masked, all of one type": [["--rival=masked", f"--dtype={dtype}", *more] for dtype in ("f32", "bf16") for more in ([], [MATMUL])],
}
HOPELESS = 1.3  # times the fastest so far: a setting that is so much slower ends unmeasured, and its type is not tried again
SHARES = ("--heads=.5", "--groups=.5", "--tokens=.75")
PAPER_SHARES = ("--heads=.5625", "--groups=.5625", "--tokens=.78")


def dtype_of(setting):
    return next((part.split("=")[1] for part in setting if part.startswith("--dtype=")), "bf16")


def settings_of(rival, size, dtypes):
    """Those that exist: a U-ViT has no masked module, and its attention is written in one way."""
    if size.startswith("U-ViT"):
        if rival.startswith("masked"):
            return []
        return [setting for setting in RIVALS[rival] if MATMUL not in setting and dtype_of(setting) in dtypes]
    return [setting for setting in RIVALS[rival] if dtype_of(setting) in dtypes]


def best_worker(rival, size, batch, args):
    """The rival at its fastest setting, and what that is."""
    best, slow = None, set()
    for setting in settings_of(rival, size, args.dtypes.split(",")):
        dtype = dtype_of(setting)
        if dtype in slow:
            continue
        setting = [part.format(threads=args.threads) for part in setting]
        command = [sys.executable, pathlib.Path(__file__).with_name("infer_torch.py"), f"--size={size}", f"--batch={batch}",
                   f"--threads={args.threads}", *setting]
        if best:
            command.append(f"--give-up-above={HOPELESS * best[1]}")
        try:
            worker = Worker(command, stderr=subprocess.DEVNULL)
        except RuntimeError:
            slow |= {dtype} if best and dtype not in best[2] else set()
            print(f"{rival}, {' '.join(setting[1:])}: does not run here{', or is slow' if best else ''}", file=sys.stderr)
            continue
        trial = worker.lap()[0]
        print(f"{' '.join(setting)}: {trial:.1f} ms/sample", file=sys.stderr)
        if best and best[1] <= trial:
            worker.close()
            continue
        if best:
            best[0].close()
        best = (worker, trial, " ".join(part.removeprefix("--") for part in setting[1:]))
    return best and (best[0], best[2])


def bench_dydit(case, shares, dtype, args):
    """One turn of the static and the dynamic model, after its own warm-up."""
    size, batch, steps = CASES[case]
    out = subprocess.run([args.dydit, "bench", f"--size={size}", f"--batch={batch}", f"--threads={args.threads}",
                          f"--dtype={dtype}", f"--steps={steps}", "--repeats=1", "--json", "--quiet", *shares],
                         capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


def has_int8(case, args):
    try:
        bench_dydit(case, PAPER_SHARES, "int8", args)
    except subprocess.CalledProcessError as error:  # a processor without the instructions
        print(f"dydit int8: {error.stderr.strip()}", file=sys.stderr)
        return False
    return True


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dydit", default=str(ROOT / "build/release/dydit"))
    parser.add_argument("--cases", default="XL,S")
    parser.add_argument("--rivals", default="openvino,compile,eager,masked",
                        help="what their names in the table begin with")
    parser.add_argument("--dtypes", default="f32,bf16,f16,int8", help="of the rivals; those that are tried")
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
        size, batch, _ = CASES[case]
        found = {rival: best_worker(rival, size, batch, args)
                 for rival in RIVALS if rival.startswith(tuple(args.rivals.split(",")))}
        workers = {f"{rival}, {best[1]}": best[0] for rival, best in found.items() if best}
        int8 = has_int8(case, args)
        own = ["static", "dynamic", "dynamic .49", *(["int8 static", "int8 dynamic .49"] if int8 else [])]
        laps = {name: [] for name in (*workers, *own)}
        turns = []
        for turn in range(args.rounds):
            for shares, name in ((SHARES, "dynamic"), (PAPER_SHARES, "dynamic .49")):
                result = bench_dydit(case, shares, "auto", args)
                turns.append(result)
                laps["static"].append(result["static"]["ms_per_sample"])
                laps[name].append(result["dynamic"]["ms_per_sample"])
                if name == "dynamic":
                    laps.setdefault("realised", []).append(result["realised_share"])
                    laps.setdefault("peak_share", []).append(result["static"]["peak_share"])
            if int8:
                result = bench_dydit(case, PAPER_SHARES, "int8", args)
                laps["int8 static"].append(result["static"]["ms_per_sample"])
                laps["int8 dynamic .49"].append(result["dynamic"]["ms_per_sample"])
            for rival, worker in workers.items():
                laps[rival].append(worker.lap()[0])
            print(f"{case}: turn {turn + 1} of {args.rounds}", file=sys.stderr)
        medians = {name: statistics.median(values) for name, values in laps.items()}
        processor, version = turns[0]["processor"], turns[0]["version"]
        print(f"\n{size}, batch {batch}, {args.threads} threads, {processor}, dydit {turns[0]['dtype']}; medians of {args.rounds}\n")
        print("| program | ms/sample | static over it | dynamic (.49) over it |\n|---|---|---|---|")
        for name in (*workers, *own):
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
