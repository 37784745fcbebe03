"""Kills a tiny fine-tune at random moments until it is done, and holds it against one that nobody touched.

    python3 tools/kill_training.py [--dydit build/release/dydit] [--kills 25] [--seed N] [--work build/kill]

Makes 32 images of 8x8, a static DiT of 20 steps, and fine-tunes it by `dydit finetune`: once in peace, once with
SIGKILL, --resume each time. A kill falls a random time after a random checkpoint ahead (or after the start), so that it
meets steps, checkpoints being written and start-ups.
Standard library only. Exit status 0 when both files of the last checkpoint are equal byte for byte (weights, moving
average, Adam's moments, counters), and the rows of both log.csv but for their clocks; 1 when they are not or the run
ended before all kills.
"""

import argparse
import csv
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib

STEPS, CHECKPOINT_EVERY = 1200, 6
CLOCKS = {"seconds", "images_per_second"}
SMALL = ["--global-batch-size", "8", "--dtype", "f32", "--lr", "1e-3", "--ema-decay", "0.9", "--threads", "1", "-q"]
FINETUNE = ["--lambda", "0.5", "--router-bias", "0,0", "--anneal-start", "0", "--anneal-steps", "400",
            "--complete-steps", "600", "--total-train-steps", str(STEPS), "--ckpt-every", str(CHECKPOINT_EVERY),
            "--keep-last", "2", "--log-every", str(CHECKPOINT_EVERY)]


def gray_png(pixels):
    """The bytes of an 8-bit gray PNG of rows of numbers."""
    def chunk(kind, payload):
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    header = struct.pack(">IIBBBBB", len(pixels[0]), len(pixels), 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(row) for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write_images(folder):
    draw = random.Random(1)
    for label in range(4):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(8):
            pixels = [[min(255, 60 * label + draw.randrange(60)) for _ in range(8)] for _ in range(8)]
            (folder / f"class{label}" / f"{index}.png").write_bytes(gray_png(pixels))


class Training:
    """The fine-tune with its results in one folder."""

    def __init__(self, dydit, work, name):
        self.results = work / name
        self.command = [dydit, "finetune", "--model", work / "static.safetensors", "--data-path", work / "images",
                        "--results-dir", self.results, *SMALL, *FINETUNE]

    def start(self):
        """Continues the run, or begins it anew while there is no checkpoint to continue from."""
        resume = any(self.results.glob("*/checkpoints/*.state"))
        if not resume:
            shutil.rmtree(self.results, ignore_errors=True)
        return subprocess.Popen([*self.command, *(["--resume"] if resume else [])], stdout=subprocess.DEVNULL)

    def step(self):
        return max((int(path.stem) for path in self.results.glob("*/checkpoints/*.state")), default=0)

    def finish(self):
        if self.start().wait() != 0:
            sys.exit(f"{self.results}: the run failed")

    def outcome(self):
        """The last checkpoint's bytes by suffix, and the log's rows without clocks."""
        run, = self.results.iterdir()
        files = {suffix: (run / f"checkpoints/{STEPS:07}{suffix}").read_bytes() for suffix in (".safetensors", ".state")}
        with open(run / "log.csv", newline="") as file:
            rows = [{key: row[key] for key in row if key not in CLOCKS} for row in csv.DictReader(file)]
        left = [path.name for path in (run / "checkpoints").iterdir() if path.suffix not in files]
        return files, rows, left


def kill_often(training, kills, pause, draw):
    """Kills after `pause` seconds at most beyond a random checkpoint; returns the newest one at each kill."""
    steps = [0]
    while len(steps) <= kills:
        goal = steps[-1] + draw.randrange(0, max(1, 2 * (STEPS - steps[-1]) // (kills + 2 - len(steps))))
        process = training.start()
        while training.step() < goal and process.poll() is None:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, pause))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            sys.exit(f"the run ended after {len(steps) - 1} of {kills} kills (exit status {process.returncode})")
        steps.append(training.step())
        print(f"kill {len(steps) - 1}: newest checkpoint {steps[-1]} of {STEPS}", flush=True)
    return steps[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dydit", type=pathlib.Path, default=pathlib.Path("build/release/dydit"))
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("build/kill"))
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    write_images(args.work / "images")
    subprocess.run([args.dydit, "train", "--data-path", args.work / "images", "--results-dir", args.work / "static",
                    "--hidden", "32", "--depth", "2", "--heads", "2", "--patch", "2", "--total-train-steps", "20", *SMALL],
                   check=True, stdout=subprocess.DEVNULL)
    shutil.copy(next((args.work / "static").glob("*/checkpoints/*.safetensors")), args.work / "static.safetensors")

    began = time.monotonic()
    whole = Training(args.dydit, args.work, "whole")
    whole.finish()
    seconds = time.monotonic() - began
    print(f"unbroken: {STEPS} steps in {seconds:.1f} s; seed of the kills {args.seed}")

    broken = Training(args.dydit, args.work, "broken")
    steps = kill_often(broken, args.kills, 2 * seconds * CHECKPOINT_EVERY / STEPS, random.Random(args.seed))
    broken.finish()
    (files, rows, _), (broken_files, broken_rows, left) = whole.outcome(), broken.outcome()
    differing = [suffix for suffix in files if files[suffix] != broken_files[suffix]]
    if rows != broken_rows:
        differing.append("log.csv")
    if differing or left:
        sys.exit(f"after {len(steps)} kills: differs: {differing}, left behind: {left}")
    print(f"{len(steps)} kills at {len(set(steps))} different checkpoints: the last checkpoint and the log are those of "
          f"the unbroken run, bit for bit")


if __name__ == "__main__":
    main()
