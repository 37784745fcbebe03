"""Writes scikit-learn's digits (1,797 gray 8x8 images of handwritten digits) as class folders of PNGs.

    python3 tools/digits_folders.py build/digits/images

makes build/digits/images/0/0000.png ... build/digits/images/9/1796.png, the form that dydit train reads. The digits
come with the scikit-learn package, nothing is downloaded. Their values 0..16 become 0..255. The number in a file's
name is the image's number in the data set.
"""

import pathlib
import struct
import sys
import zlib

import numpy as np
from sklearn.datasets import load_digits


def digits():
    """(N, 8, 8) uint8 images, (N) labels."""
    data = load_digits()
    return np.rint(data.images * (255 / 16)).astype(np.uint8), data.target


def gray_png(image):
    """The bytes of an 8-bit gray PNG: signature, IHDR, one IDAT of unfiltered rows, IEND."""
    def chunk(kind, payload):
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    height, width = image.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, gray
    rows = b"".join(b"\0" + row.tobytes() for row in image)  # filter 0 before every row
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def main():
    root = pathlib.Path(sys.argv[1])
    images, labels = digits()
    for number, (image, label) in enumerate(zip(images, labels)):
        folder = root / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04}.png").write_bytes(gray_png(image))
    print(f"{root}: {len(images)} images in 10 class folders")


if __name__ == "__main__":
    main()
