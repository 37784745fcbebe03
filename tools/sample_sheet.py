"""Puts samples of several models above each other, what an image cost beneath each, into one SVG.

    python3 tools/sample_sheet.py sheet.svg static=out/static control=out/control [--columns 10] [--rows 2] [--scale 2]

NAME=BASE reads BASE.npz and BASE.json, as `dydit generate --npz BASE.npz --json > BASE.json` writes them. The samples are
embedded as PNG. Standard library and numpy.
"""

import argparse
import base64
import json
import pathlib
import struct
import sys
import zlib
from xml.sax.saxutils import escape

import numpy as np

MARGIN, CAPTION, GAP = 12, 30, 2  # pixels around, beneath each model's samples, between samples


def png(image):
    """(height, width) or (height, width, 3) uint8 -> PNG bytes."""
    rows = image.reshape(image.shape[0], -1)
    raw = np.concatenate([np.zeros((len(rows), 1), np.uint8), rows], axis=1).tobytes()

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2 if image.ndim == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def grid(images, columns, rows):
    """The first columns * rows images, white between them."""
    if len(images) < columns * rows:
        sys.exit(f"{columns} x {rows} samples are wanted, there are {len(images)}")
    if images.shape[-1] == 1:
        images = images[..., 0]
    padding = ((0, 0), (0, GAP), (0, GAP)) + ((0, 0),) * (images.ndim - 3)
    tiles = np.pad(images[:columns * rows], padding, constant_values=255)
    return np.concatenate([np.concatenate(tiles[r * columns:(r + 1) * columns], axis=1) for r in range(rows)], axis=0)


def caption(name, run):
    images = run["images"]

    def mean(key):
        return sum(image[key] for image in images) / len(images)

    return (f"{name}: {mean('required_gmacs'):.1f} GMACs an image ({100 * mean('required_share'):.1f} % of static), "
            f"{mean('seconds'):.2f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sheet")
    parser.add_argument("models", nargs="+", metavar="NAME=BASE")
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--scale", type=float, default=2)
    args = parser.parse_args()
    parts, y, width = [], MARGIN, 0
    for model in args.models:
        name, _, base = model.partition("=")
        picture = grid(np.load(base + ".npz")["arr_0"], args.columns, args.rows)
        run = json.loads(pathlib.Path(base + ".json").read_text())
        height, shown = picture.shape[0] * args.scale, picture.shape[1] * args.scale
        data = base64.b64encode(png(np.ascontiguousarray(picture))).decode()
        parts.append(f'<image x="{MARGIN}" y="{y}" width="{shown:g}" height="{height:g}" image-rendering="pixelated" '
                     f'href="data:image/png;base64,{data}"/>')
        parts.append(f'<text x="{MARGIN}" y="{y + height + 18:g}">{escape(caption(name, run))}</text>')
        y += height + CAPTION
        width = max(width, shown)
    size = f'width="{width + 2 * MARGIN:g}" height="{y + MARGIN:g}"'
    pathlib.Path(args.sheet).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="14">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
