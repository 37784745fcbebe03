"""How the cost of a forward grows with the batch, the tokens and the work that is left: rows and a picture.

    python3 benchmarks/cost_growth.py --csv docs/data/cost-growth.csv --svg docs/images/cost-growth.svg [--size DiT-S/2]

Random weights, bfloat16, `dydit bench` for every point; the dynamic model has half of its heads and groups on and three
quarters of its tokens in the MLPs, except where the work is what varies. Standard library only.
"""

import argparse
import csv
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import plot_csv  # noqa: E402

BATCHES = (1, 2, 4, 8, 16, 32)
SIDES = (16, 24, 32, 48, 64)  # of the latent; patches of 2: 64 to 1024 tokens
SHARES = ("--heads=.5", "--groups=.5", "--tokens=.75")
PARTS = 6  # heads and groups of DiT-S
COLUMNS = ("vary", "batch", "tokens", "required_share", "static_ms", "dynamic_ms", "static_peak_share", "dynamic_peak_share",
           "realised_share", "processor")


def bench(args, vary, batch, side, shares):
    """A row: one point, static and dynamic in turns."""
    out = subprocess.run([args.dydit, "bench", f"--size={args.size}", f"--batch={batch}", f"--input-size={side}", "--dtype=bf16",
                          f"--threads={args.threads}", "--steps=4", f"--repeats={args.repeats}", "--json", "-q", *shares],
                         capture_output=True, text=True, check=True)
    run = json.loads(out.stdout)
    run.setdefault("dynamic", run["static"])  # with everything on there is one model only
    run.setdefault("realised_share", 1.0)
    row = {"vary": vary, "batch": batch, "tokens": side * side // 4, "required_share": run["required_share"],
           "static_ms": run["static"]["ms_per_sample"], "dynamic_ms": run["dynamic"]["ms_per_sample"],
           "static_peak_share": run["static"]["peak_share"], "dynamic_peak_share": run["dynamic"]["peak_share"],
           "realised_share": run["realised_share"], "processor": run["processor"]}
    print(", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()),
          file=sys.stderr)
    return row


def measure(args):
    rows = [bench(args, "batch", batch, 32, SHARES) for batch in BATCHES]
    rows += [bench(args, "tokens", 4, side, SHARES) for side in SIDES]
    for on in range(1, PARTS + 1):
        share = on / PARTS
        rows.append(bench(args, "work", 4, 32, (f"--heads={share}", f"--groups={share}", f"--tokens={min(1, .5 + share / 2)}")))
    return rows


def picture(rows, title):
    """Three plots side by side."""
    def of(vary, key):
        return [row[key] for row in rows if row["vary"] == vary]

    shares = of("work", "required_share")
    plots = [plot_csv.plot(of("batch", "batch"), [of("batch", "static_ms"), of("batch", "dynamic_ms")], ["static", "dynamic"],
                           "samples a batch, of 256 tokens", "Milliseconds a sample", low=0),
             plot_csv.plot(of("tokens", "tokens"), [of("tokens", "static_ms"), of("tokens", "dynamic_ms")], ["static", "dynamic"],
                           "tokens, 4 samples a batch", "Milliseconds a sample", low=0),
             plot_csv.plot(shares, [shares, [d / s for d, s in zip(of("work", "dynamic_ms"), of("work", "static_ms"))]],
                           ["all saved work is saved time", "measured"], "required share of the static model's work",
                           "Time as a share of the static model's", low=0, high=1.05)]
    width, height = plot_csv.WIDTH, plot_csv.HEIGHT
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {3 * width} {height + 24}" font-family="sans-serif">',
             '<rect width="100%" height="100%" fill="white"/>', f'<text x="16" y="18" font-size="14">{title}</text>']
    for index, svg in enumerate(plots):
        parts.append(svg.replace("<svg ", f'<svg x="{index * width}" y="24" width="{width}" height="{height}" ', 1))
    return "\n".join([*parts, "</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dydit", default=str(ROOT / "build/release/dydit"))
    parser.add_argument("--size", default="DiT-S/2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--csv", required=True, type=pathlib.Path)
    parser.add_argument("--svg", required=True, type=pathlib.Path)
    args = parser.parse_args()
    rows = measure(args)
    with open(args.csv, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({key: f"{value:.5g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows)
    args.svg.write_text(picture(rows, f"{args.size}, bf16, {args.threads} threads, {rows[0]['processor']}"))


if __name__ == "__main__":
    main()
