"""Turns columns of a CSV file into an SVG line plot.

    python3 tools/plot_csv.py curves.csv ratio.svg --x step --y ratio_training ratio_inference [--title TEXT]
                              [--from 0] [--to 1]

--from and --to are the ends of the vertical axis; without them the data decide. Rows whose value is not a finite number
leave a gap. Standard library only.
"""

import argparse
import csv
import math
import pathlib
import sys
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 44  # margins
COLOURS = ["#888888", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e"]


def read_columns(path, names):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        sys.exit(f"{path}: holds no rows")
    for name in names:
        if name not in rows[0]:
            sys.exit(f"{path}: has no column '{name}'; there are {', '.join(rows[0])}")
    return [[float(row[name]) for row in rows] for name in names]


def ticks(low, high):
    """About five round numbers within [low, high]."""
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if (high - low) / (factor * power) <= 6)
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def extent(values, low=None, high=None):
    finite = [value for value in values if math.isfinite(value)]
    low = min(finite) if low is None else low
    high = max(finite) if high is None else high
    return (low, high) if high > low else (low - 0.5, low + 0.5)


class Axes:
    """Data coordinates to pixels."""

    def __init__(self, x_extent, y_extent):
        self.x_extent, self.y_extent = x_extent, y_extent

    def x(self, value):
        low, high = self.x_extent
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value):
        low, high = self.y_extent
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def grid(self, x_name):
        parts = []
        for value in ticks(*self.x_extent):
            parts.append(f'<text x="{self.x(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
        for value in ticks(*self.y_extent):
            y = self.y(value)
            parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>')
        return parts

    def line(self, xs, ys, colour):
        path, pen = [], "M"
        for x, y in zip(xs, ys):
            if not math.isfinite(y):
                pen = "M"
                continue
            path.append(f"{pen}{self.x(x):.1f} {self.y(y):.1f}")
            pen = "L"
        return f'<path d="{" ".join(path)}" fill="none" stroke="{colour}" stroke-width="1.8"/>'


def legend(names):
    parts, x = [], LEFT
    for name, colour in zip(names, COLOURS):
        parts.append(f'<line x1="{x}" x2="{x + 18}" y1="30" y2="30" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 24}" y="34">{escape(name)}</text>')
        x += 44 + 7 * len(name)
    return parts


def plot(xs, lines, names, x_name, title, low=None, high=None):
    """An SVG document: lines (one list a name) over xs."""
    axes = Axes(extent(xs), extent([value for ys in lines for value in ys], low, high))
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-weight="bold">{escape(title)}</text>',
        *legend(names), *axes.grid(x_name), *(axes.line(xs, ys, colour) for ys, colour in zip(lines, COLOURS)), "</svg>"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=pathlib.Path)
    parser.add_argument("svg", type=pathlib.Path)
    parser.add_argument("--x", required=True)
    parser.add_argument("--y", required=True, nargs="+")
    parser.add_argument("--title", default="")
    parser.add_argument("--from", dest="low", type=float)
    parser.add_argument("--to", dest="high", type=float)
    args = parser.parse_args()
    if len(args.y) > len(COLOURS):
        sys.exit(f"--y: {len(args.y)} columns, at most {len(COLOURS)} can be told apart")
    xs, *lines = read_columns(args.csv, [args.x, *args.y])
    args.svg.write_text(plot(xs, lines, args.y, args.x, args.title, args.low, args.high) + "\n")


if __name__ == "__main__":
    main()
