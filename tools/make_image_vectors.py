"""Makes tests/data/images.npz: what PIL makes of small images, for tests/data and tests/io.

    python3 -m venv /var/tmp/v && /var/tmp/v/bin/pip install numpy==2.2.6 pillow==12.0.0
    /var/tmp/v/bin/python tools/make_image_vectors.py tests/data/images.npz

file_KIND: the bytes of a PNG or JPEG; pixels_KIND: PIL's pixels of it, gray or RGB.
crop_HxWxC_S: center_crop_arr of guided-diffusion (image_datasets.py) of noise(H, W, C) to side S.
luma: convert("L") of noise(16, 16, 3).
"""

import io
import sys

import numpy as np
from PIL import Image

CROPS = [(40, 30, 3, 16), (100, 70, 3, 16), (33, 64, 3, 32), (20, 50, 3, 32), (37, 37, 3, 24), (5, 9, 3, 8),
         (64, 64, 1, 16), (31, 90, 1, 20), (45, 30, 3, 20)]


def noise(height, width, channels):
    """The tests make the same: a linear congruential generator, smoothed a little by keeping 6 bits."""
    state, values = 1, []
    for _ in range(height * width * channels):
        state = (state * 1664525 + 1013904223) % 2**32
        values.append(state >> 24 & 0xFC)
    array = np.array(values, np.uint8).reshape(height, width, channels)
    return Image.fromarray(array[:, :, 0] if channels == 1 else array)


def center_crop(image, side):
    while min(*image.size) >= 2 * side:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.BOX)
    scale = side / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.BICUBIC)
    array = np.array(image)
    y, x = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    return array[y:y + side, x:x + side]


def smooth(mode):
    y, x = np.mgrid[0:11, 0:13]
    array = np.stack([x * 19, y * 23, (x + y) * 10, 255 - x * y], -1).astype(np.uint8)
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    return Image.fromarray(array[:, :, 0] if channels == 1 else np.ascontiguousarray(array[:, :, :channels]), mode)


def files():
    yield "png_rgb", smooth("RGB"), "PNG", {}
    yield "png_rgba", smooth("RGBA"), "PNG", {}
    yield "png_gray", smooth("L"), "PNG", {}
    yield "png_gray_alpha", smooth("LA"), "PNG", {}
    yield "png_palette", smooth("RGB").quantize(7), "PNG", {}
    yield "png_palette_clear", smooth("RGB").quantize(7), "PNG", {"transparency": 1}
    yield "png_bits", smooth("L").point(lambda v: 255 * (v > 99)).convert("1"), "PNG", {}
    yield "jpeg_rgb", smooth("RGB"), "JPEG", {"quality": 80}
    yield "jpeg_444", smooth("RGB"), "JPEG", {"quality": 90, "subsampling": 0}
    yield "jpeg_progressive", smooth("RGB"), "JPEG", {"quality": 80, "progressive": True}
    yield "jpeg_gray", smooth("L"), "JPEG", {"quality": 80}
    yield "jpeg_cmyk", smooth("CMYK"), "JPEG", {"quality": 80}


arrays = {"luma": np.array(noise(16, 16, 3).convert("L"))}
for height, width, channels, side in CROPS:
    arrays[f"crop_{height}x{width}x{channels}_{side}"] = center_crop(noise(height, width, channels), side)
for kind, image, form, options in files():
    stream = io.BytesIO()
    image.save(stream, form, **options)
    arrays[f"file_{kind}"] = np.frombuffer(stream.getvalue(), np.uint8)
    loaded = Image.open(io.BytesIO(stream.getvalue()))
    if "cmyk" not in kind:
        gray = loaded.mode in ("1", "L", "LA")
        arrays[f"pixels_{kind}"] = np.array(loaded.convert("L" if gray else "RGB"))
np.savez_compressed(sys.argv[1], **arrays)
