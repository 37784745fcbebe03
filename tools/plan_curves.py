"""Turns what `dydit calibrate --csv` wrote into a picture and a table: error against work, or against seconds.

    python3 tools/plan_curves.py curves.svg static=static.csv dynamic=dynamic.csv [--x cost|executed|seconds] [--title TEXT]
    python3 tools/plan_curves.py --table static=static.csv dynamic=dynamic.csv

A line a model and family: fora, taylor of order 1, searched plans, fewer steps of the same sampler, and guidance that is
forecast on the best of them (those plans that no other beats). Standard library only.
"""

import argparse
import csv
import math
import pathlib
import sys
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 44, 48
FAMILIES = {"fewer steps": lambda name: "-" in name and ":" not in name, "fora": lambda name: name.startswith("fora:") and " " not in name,
            "taylor, order 1": lambda name: name.startswith("taylor:") and name.endswith(",1"),
            "searched": lambda name: name.startswith("search:") and " " not in name,
            "with guidance forecast": lambda name: "guide-every" in name}
COLOURS = ["#888888", "#9467bd", "#2ca02c", "#1f77b4", "#d62728"]
DASHES = ["6 4", ""]
AXES = {"cost": "required work, share of the static model's run", "executed": "executed work, share of the static model's run",
        "seconds": "seconds an image"}


def read(path):
    with open(path, newline="") as file:
        return [{key: value if key == "name" else float(value or "inf") for key, value in row.items()} for row in csv.DictReader(file)]


def best(rows, x):
    """Those that no other beats, by x."""
    kept = []
    for row in sorted(rows, key=lambda row: (row[x], row["error"])):
        if row["error"] > 0 and (not kept or row["error"] < kept[-1]["error"]):
            kept.append(row)
    return kept


def series(models, x):
    for number, (model, rows) in enumerate(models.items()):
        for (family, of_family), colour in zip(FAMILIES.items(), COLOURS):
            points = best([row for row in rows if of_family(row["name"])], x)
            if points:
                yield f"{model}: {family}", colour, DASHES[number % 2], [(row[x], row["error"]) for row in points]


def draw(models, x, title):
    lines = list(series(models, x))
    xs = [point[0] for line in lines for point in line[3]]
    errors = [point[1] for line in lines for point in line[3]]
    right = max(xs) * 1.02
    low, high = math.floor(math.log10(min(errors)) * 2) / 2, math.ceil(math.log10(max(errors)) * 2) / 2
    at_x = lambda value: LEFT + (WIDTH - LEFT - RIGHT) * value / right
    at_y = lambda value: TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(value)) / (high - low)
    text = lambda x, y, anchor, content: f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>\n'
    body = f'<g font-size="14">{text(LEFT, 20, "start", title)}</g>'
    for power in range(math.floor(low), math.ceil(high) + 1):
        for factor in (1, 2, 5):
            value = factor * 10.0**power
            if low <= math.log10(value) <= high:
                body += f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(value):.1f}" y2="{at_y(value):.1f}" stroke="#dddddd"/>\n'
                body += text(LEFT - 6, at_y(value) + 4, "end", f"{value:g}")
    step = 10 ** math.floor(math.log10(right)) / (5 if right / 10 ** math.floor(math.log10(right)) < 3 else 2)
    for index in range(int(right / step) + 1):
        body += text(at_x(index * step), HEIGHT - BOTTOM + 18, "middle", f"{index * step:g}")
    body += text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "middle", AXES[x])
    for number, (name, colour, dash, points) in enumerate(lines):
        path = "".join(f"{'L' if i else 'M'}{at_x(px):.1f} {at_y(py):.1f}" for i, (px, py) in enumerate(points))
        style = f'fill="none" stroke="{colour}" stroke-width="2"' + (f' stroke-dasharray="{dash}"' if dash else "")
        body += f'<path d="{path}" {style}/>\n'
        body += "".join(f'<circle cx="{at_x(px):.1f}" cy="{at_y(py):.1f}" r="2.5" fill="{colour}"/>\n' for px, py in points)
        y = TOP + 18 * number + 8
        body += f'<path d="M{WIDTH - RIGHT + 12} {y}h22" {style}/>\n' + text(WIDTH - RIGHT + 40, y + 4, "start", name)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n{body}</svg>\n')


def table(models):
    """A row an interval: N's plans of all uniform families, cost and error."""
    policies = ["fora:{}", "taylor:{},1", "taylor:{},2", "lagrange:{},2", "stack:{},2"]
    for model, rows in models.items():
        known = {row["name"]: row for row in rows}
        steps = sorted((row for row in rows if FAMILIES["fewer steps"](row["name"])), key=lambda row: -row["cost"])
        print(f"\n| {model}: cost | {' | '.join(p.format('N') for p in policies)} | fewer steps: cost, error |")
        print("|" + "---|" * (len(policies) + 2))
        for n in range(2, 9):
            found = [known.get(policy.format(n)) for policy in policies]
            if not found[0]:
                continue
            errors = " | ".join(f"{row['error']:.4f}" if row else "" for row in found)
            fewer = f"{steps[n - 2]['cost']:.3f}, {steps[n - 2]['error']:.4f}" if n - 2 < len(steps) else ""
            print(f"| N = {n}: {found[0]['cost']:.3f} | {errors} | {fewer} |")
        print(f"\n| {model}: plans that no other beats | cost | executed | error | +- | PSNR |\n|---|---|---|---|---|---|")
        for row in best(rows, "cost_max"):
            print(f"| {row['name']} | {row['cost']:.3f} | {row['executed']:.3f} | {row['error']:.4f} | {row['error_se']:.4f} | {row['psnr']:.1f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help="the picture, unless --table; then NAME=CSV")
    parser.add_argument("--x", choices=AXES, default="cost")
    parser.add_argument("--title", default="Distance to the model's own full run")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    named = args.files if args.table else args.files[1:]
    models = {}
    for word in named:
        name, equals, path = word.partition("=")
        if not equals:
            sys.exit(f"{word}: NAME=CSV is wanted")
        models[name] = read(path)
    if args.table:
        return table(models)
    pathlib.Path(args.files[0]).write_text(draw(models, args.x, args.title))


if __name__ == "__main__":
    main()
