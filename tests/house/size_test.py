"""The tracked files together stay small enough to be carried whole: a machine that is lent for half an hour takes 64 MiB a call, and the packed
program for its GPU (about 3 MiB, benchmarks/gpu/build) has to fit beside them."""

import subprocess

import house

LIMIT = 57 << 20
LARGEST = 5  # named in the message


def tracked_sizes(root):
    """{file: bytes} of what git tracks, as it lies there; None outside a checkout of this repository."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True)
    except FileNotFoundError:
        return None
    names = [name for name in listed.stdout.decode().split("\0") if name]
    if listed.returncode or not names:  # an archive, on its own or inside another project's checkout
        return None
    return {name: (root / name).lstat().st_size for name in names if (root / name).exists()}


def complaint(sizes, limit):
    total = sum(sizes.values())
    if total <= limit:
        return None
    largest = sorted(sizes, key=sizes.get, reverse=True)[:LARGEST]
    return (f"the tracked files are {total / 2**20:.1f} MiB, at most {limit / 2**20:.0f} are wanted; the largest: "
            f"{', '.join(f'{name} ({sizes[name] / 2**20:.1f} MiB)' for name in largest)}; make one smaller, or leave it out")


def self_check():
    found = complaint({"a": 3 << 20, "b/c": 2 << 20}, 4 << 20)
    if not found or "5.0 MiB" not in found or found.index("a (3.0 MiB)") > found.index("b/c (2.0 MiB)") or complaint({"a": 4}, 4):
        house.finish([f"self-check: {found}"], "")


self_check()
sizes = tracked_sizes(house.ROOT)
if sizes is None:
    house.skip("no git checkout, so nobody knows which files are tracked")
found = complaint(sizes, LIMIT)
house.finish([found] if found else [], f"{len(sizes)} tracked files are {sum(sizes.values()) / 2**20:.1f} MiB, at most {LIMIT >> 20}")
