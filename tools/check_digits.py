"""Asks scikit-learn's real digits what generated ones show: the share whose nearest real digits carry their label.

    python3 tools/check_digits.py static.npz [dynamic.npz ...] [--least 0.9]

Each npz is what dydit generate --npz writes: arr_0 (N, 8, 8, 1 or 3) uint8, row i of class i mod 10 (generate takes all
classes in order when none are given). Nearest neighbours: majority of the 5 nearest of all 1,797 in Euclidean
distance, the nearest one deciding ties. Exit status 1 when a file has a smaller share than --least.

As a yardstick the same rule is applied to every real digit with itself left out.
"""

import argparse
import sys

import numpy as np

from digits_folders import digits

NEIGHBOURS = 5


def classify(queries, images, labels, skip_self=False):
    """(M, 64) float -> (M) labels."""
    distances = (queries**2).sum(1)[:, None] - 2 * queries @ images.T + (images**2).sum(1)[None]
    if skip_self:
        np.fill_diagonal(distances, np.inf)
    nearest = labels[np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]]
    votes = np.stack([(nearest == label).sum(1) for label in range(10)], axis=1).astype(float)
    votes[np.arange(len(votes)), nearest[:, 0]] += 0.5
    return votes.argmax(1)


def load(path):
    images = np.load(path)["arr_0"]
    if images.ndim == 4:
        images = images.astype(float).mean(axis=3)
    if images.shape[1:] != (8, 8):
        sys.exit(f"{path}: images of {images.shape[1:]}, expected 8x8")
    return images.reshape(len(images), 64)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--least", type=float, default=0.9)
    args = parser.parse_args()
    images, labels = digits()
    images = images.reshape(len(images), 64).astype(float)
    print(f"real digits, each by the others: {(classify(images, images, labels, True) == labels).mean():.1%}")
    failed = False
    for path in args.files:
        samples = load(path)
        wanted = np.arange(len(samples)) % 10
        found = classify(samples, images, labels)
        share = (found == wanted).mean()
        by_class = " ".join(f"{label}:{(found[wanted == label] == label).mean():.0%}" for label in range(10))
        print(f"{path}: {share:.1%} of {len(samples)} recognised as their label ({by_class})")
        if share < args.least:
            print(f"{path}: at least {args.least:.0%} is wanted")
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
