"""Times dydit train against a plain PyTorch loop of the same model, and prints one table.

    benchmarks/rivals/setup
    build/rivals/bin/python benchmarks/rivals/compare_training.py [--rounds 5 --steps 20 --csv training.csv]

Same random images in memory, batch, threads, AdamW, gradient clipping, flip, label dropout and EMA; bf16 means autocast
in PyTorch, and products of the blocks in bfloat16 with all else in float32 in dydit. The programs
take turns (dydit, PyTorch with its fused attention, PyTorch without), so that a busy minute hits all of them. A
program's images/s is the median over all its steps but the first few of every turn; peak memory is the largest VmHWM
(ru_maxrss) of its turns. Cases: 64 tokens (hidden 256, 8 blocks, 8 heads, 3x32x32 in patches of 4) and 256 tokens
(DiT-S/2 on 3x32x32: three channels, because images are what dydit train reads).
"""

import argparse
import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIDE, CHANNELS, CLASSES, IMAGES = 32, 3, 10, 2048
LR, CLIP_GRAD = 1e-4, 1.0


@dataclass
class Case:
    name: str
    hidden: int
    depth: int
    heads: int
    patch: int
    batch: int

    def flags(self):
        return [f"--{key}={getattr(self, key)}" for key in ("hidden", "depth", "heads", "patch")]


@dataclass
class Tally:
    """All turns of one program on one case."""
    rates: list = field(default_factory=list)
    peak: int = 0

    def add(self, rates, peak):
        self.rates += rates
        self.peak = max(self.peak, peak)

    @property
    def median(self):
        return statistics.median(self.rates)


CASES = {"64": Case("hidden 256 x 8 blocks, 64 tokens", 256, 8, 8, 4, 64),
         "256": Case("DiT-S/2, 256 tokens", 384, 12, 6, 2, 16)}


def run(command):
    """-> (stdout, peak bytes)."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(map(str, command))}\n{err.read().decode()}")
        return out.read().decode(), usage.ru_maxrss * 1024


def run_dydit(case, data, args):
    with tempfile.TemporaryDirectory() as results:
        _, peak = run([args.dydit, "train", "--data-path", data, "--results-dir", results, *case.flags(),
                       f"--global-batch-size={case.batch}", f"--total-train-steps={args.warmup + args.steps}",
                       f"--lr={LR}", f"--clip-grad={CLIP_GRAD}", f"--dtype={args.dtype}",
                       f"--threads={args.threads}", "--log-every=1", "--quiet"])
        with open(next(pathlib.Path(results).glob("*/log.csv"))) as file:
            rates = [float(row["images_per_second"]) for row in csv.DictReader(file)]
    return rates[args.warmup:], peak


def run_torch(case, data, args, extra=()):
    script = pathlib.Path(__file__).with_name("train_torch.py")
    out, peak = run([sys.executable, script, f"--data-path={data}", *case.flags(), f"--batch={case.batch}",
                     f"--classes={CLASSES}", f"--steps={args.steps}", f"--warmup={args.warmup}", f"--lr={LR}",
                     f"--clip-grad={CLIP_GRAD}", f"--dtype={args.dtype}", f"--threads={args.threads}", "--json",
                     *extra])
    return json.loads(out)["rates"], peak


def processor():
    with open("/proc/cpuinfo") as file:
        lines = file.read().splitlines()
    name = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "unknown processor")
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    features = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{name}, {os.cpu_count()} cores, {' '.join(features)}"


def versions(args):
    import torch

    def said(*command):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    commit = said("git", "-C", ROOT, "describe", "--always", "--dirty")
    return f"{said(args.dydit, '--version')} (commit {commit}), torch {torch.__version__}"


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dydit", default=str(ROOT / "build/release/dydit"))
    parser.add_argument("--cases", default="64,256", help="comma-separated: 64, 256 (tokens)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every program")
    parser.add_argument("--steps", type=int, default=20, help="timed steps a turn")
    parser.add_argument("--warmup", type=int, default=3, help="steps a turn before them")
    parser.add_argument("--batch", type=int, help="instead of the cases' own")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", choices=("bf16", "f32"), default="bf16")
    parser.add_argument("--csv", help="also write the table's rows here")
    return parser.parse_args()


def main():
    args = parse_args()
    cases = [CASES[key] for key in args.cases.split(",")]
    programs = {"dydit": run_dydit, "PyTorch": run_torch,
                "PyTorch, attention not fused": lambda *a: run_torch(*a, extra=["--no-fused-attention"])}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "data.npz"
        generator = np.random.default_rng(0)
        np.savez(data, images=generator.integers(0, 256, (IMAGES, SIDE, SIDE, CHANNELS), dtype=np.uint8),
                 labels=np.arange(IMAGES) % CLASSES)
        for case in cases:
            case.batch = args.batch or case.batch
            tallies = {name: Tally() for name in programs}
            for turn in range(args.rounds):
                for name, program in programs.items():
                    rates, peak = program(case, data, args)
                    tallies[name].add(rates, peak)
                    print(f"{case.name}: turn {turn + 1}, {name}: {statistics.median(rates):.1f} images/s",
                          file=sys.stderr)
            for name, tally in tallies.items():
                rows.append({"case": case.name, "batch": case.batch, "program": name,
                             "images_per_second": round(tally.median, 2),
                             "dydit_over_it": round(tallies["dydit"].median / tally.median, 3),
                             "peak_mib": round(tally.peak / 2**20), "steps": len(tally.rates)})
    print(f"{processor()}; {args.threads} threads, {args.dtype}\n{versions(args)}\n")
    print("| model | batch | program | images/s | dydit over it | peak MiB | steps |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(str(value) for value in row.values())} |")
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
