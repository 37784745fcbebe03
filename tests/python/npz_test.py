"""Data sets that numpy saved: savez and savez_compressed, gray and RGB, any integer labels.

npz_test.py TOOL WORKDIR, with numpy installed; TOOL is data_tool of the build.
"""

import pathlib
import shutil
import subprocess
import sys

import numpy as np


def main():
    tool, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    for save in np.savez, np.savez_compressed:
        for shape in (5, 4, 4, 3), (5, 4, 4, 1), (5, 4, 4):
            for dtype in np.int64, np.uint8, np.int32:
                images = random.integers(0, 256, shape, dtype=np.uint8)
                labels = np.array([0, 2, 1, 1, 0], dtype=dtype)
                path = folder / f"{save.__name__}_{len(shape)}_{shape[-1]}_{np.dtype(dtype)}.npz"
                save(path, images=images, labels=labels)
                printed = subprocess.run([tool, "describe", path], check=True, capture_output=True, text=True).stdout
                wanted = [f"5 {3 if shape[-1] == 3 else 1} 4"]
                wanted += [f"{label} {image.sum(dtype=int)}" for label, image in zip(labels, images)]
                assert printed.splitlines() == wanted, (path, printed, wanted)


if __name__ == "__main__":
    main()
