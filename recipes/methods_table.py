#!/usr/bin/env python3
"""Markdown of what recipes/methods-cifar.sh has measured: each arm beside its control, by the seeds there are.

    recipes/methods_table.py OUT...      folders of the recipe

Loss: mean squared error on held-out images, all deciles of t, times 1000; images and noise are the same for all, so arms
are compared seed by seed: the difference to the control and how far it is from seed to seed (or, of one seed, the spread over noises).
"""

import json
import pathlib
import statistics
import sys

# Arm, its control.
ARMS = [("uniform", "plain"), ("speed-draw", "plain"), ("speed", "plain"), ("dispersive", "plain"), ("self", "plain"), ("encoder", "plain"),
        ("plr", "plain"), ("levels-time", "static"), ("levels-step", "static"), ("capacity", "static"), ("interval", "capacity"),
        ("regions10", "capacity"), ("block", "capacity"), ("td-lora", "capacity"), ("lora", "capacity"), ("routers", "capacity")]
SINGLES = ["weak*", "fewer*", "guided-*", "ddim*", "judged-lcm*", "judged-static*"]  # judged alone: name, KID, FID, work


def read(path):
    return json.loads(path.read_text())


def by_name(folders, pattern):
    return {path.stem: read(path) for folder in folders for path in sorted(folder.glob(pattern)) if path.stat().st_size > 0}


def seeds_of(found, kind, arm):
    prefix = f"{kind}-{arm}-"
    return {name[len(prefix):]: value for name, value in found.items() if name.startswith(prefix) and name[len(prefix):].isdigit()}


def mean_text(values, digits):
    return f"{statistics.mean(values):.{digits}f}"


def row_of_arm(losses, judged, arm, control):
    own, others = seeds_of(losses, "loss", arm), seeds_of(losses, "loss", control)
    shared = sorted(own.keys() & others.keys())
    if not shared:
        return None
    mse = [1e3 * own[seed]["all"]["mse"] for seed in shared]
    change = [1e3 * (own[seed]["all"]["mse"] - others[seed]["all"]["mse"]) for seed in shared]
    spread = statistics.stdev(change) if len(change) > 1 else 1e3 * own[shared[0]]["all"]["mse_spread"]
    images, control_images = seeds_of(judged, "judged", arm), seeds_of(judged, "judged", control)
    both = sorted(images.keys() & control_images.keys())
    kid = " / ".join(f"{1e3 * images[seed]['kid']:.2f} ({1e3 * control_images[seed]['kid']:.2f})" for seed in both) or "-"
    share = mean_text([own[seed]["all"]["required_share"] for seed in shared], 3)
    return [arm, control, ", ".join(shared), mean_text(mse, 2), f"{statistics.mean(change):+.2f} ± {spread:.2f}", kid, share]


def single(name, value):
    error = f" ± {1e3 * value['kid_error']:.2f}" if "kid_error" in value else ""
    gmacs = value.get("required_gmacs_per_image", value.get("required_gmacs"))
    return [value.get("name", name), f"{1e3 * value['kid']:.2f}{error}", f"{value['fid']:.1f}", f"{gmacs:.2f}" if gmacs else "-"]


def table(head, rows):
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    print("\n".join(lines) + "\n")


def main():
    folders = [pathlib.Path(name) for name in sys.argv[1:]]
    if not folders or not all(folder.is_dir() for folder in folders):
        sys.exit(__doc__)
    losses, judged = by_name(folders, "loss-*.json"), by_name(folders, "judged-*.json")
    rows = [row for row in (row_of_arm(losses, judged, *pair) for pair in ARMS) if row]
    table(["arm", "control", "seeds", "loss x 1000", "difference", "KID x 1000 (control's)", "work"], rows)
    alone = [single(name, value) for pattern in SINGLES for name, value in by_name(folders, pattern + ".json").items()]
    table(["run", "KID x 1000", "FID", "GMACs an image"], alone)


if __name__ == "__main__":
    main()
