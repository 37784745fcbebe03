"""Puts samples of two models into one picture: five rows of the ten digits of the first, five of the second.

    python3 tools/digits_sheet.py static.npz dynamic.npz sheet.png

The files are those of dydit generate --npz with all ten classes in order; the first fifty images of each are shown.
"""

import pathlib
import sys

import numpy as np

from digits_folders import gray_png

SCALE, GAP, PAPER = 6, 2, 96  # pixels a pixel; pixels between digits; gray between them


def rows_of_digits(path):
    """arr_0 (N, 8, 8, channels) -> one gray image, ten digits a row."""
    images = np.load(path)["arr_0"]
    if images.ndim == 4:
        images = images[..., 0]
    tiles = np.pad(images[:50], ((0, 0), (0, GAP), (0, GAP)), constant_values=PAPER)
    return np.concatenate([np.concatenate(tiles[i:i + 10], axis=1) for i in range(0, len(tiles), 10)], axis=0)


def main():
    above, below = rows_of_digits(sys.argv[1]), rows_of_digits(sys.argv[2])
    gap = np.full((3 * GAP, above.shape[1]), PAPER, np.uint8)
    sheet = np.pad(np.concatenate([above, gap, below]), ((GAP, 0), (GAP, 0)), constant_values=PAPER)
    pathlib.Path(sys.argv[3]).write_bytes(gray_png(np.ascontiguousarray(sheet.repeat(SCALE, 0).repeat(SCALE, 1))))


if __name__ == "__main__":
    main()
