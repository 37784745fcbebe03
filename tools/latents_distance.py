"""How far samples lie from others of the same noise: mean of ||x - x_0|| / ||x_0|| over the images.

    build/venv/bin/python3 tools/latents_distance.py REFERENCE.safetensors OTHER.safetensors

Both from `dydit generate --latents`; needs numpy and safetensors (scripts/setup --tests).
"""

import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.splitlines()[2].strip())
    wanted, got = (load_file(path)["latents"] for path in sys.argv[1:])
    if wanted.shape != got.shape:
        sys.exit(f"{sys.argv[2]}: {got.shape} samples, {sys.argv[1]} has {wanted.shape}")
    apart = np.linalg.norm((got - wanted).reshape(len(got), -1), axis=1) / np.linalg.norm(wanted.reshape(len(got), -1), axis=1)
    print(f"{pathlib.Path(sys.argv[2]).stem:<32} {apart.mean():.4f} +- {apart.std(ddof=1) / len(apart) ** 0.5:.4f}")


if __name__ == "__main__":
    main()
