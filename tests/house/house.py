"""What the tests of the house share: the root of the checkout, its files, and how a test ends."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SKIP = 77  # ctest's SKIP_RETURN_CODE


def project_files(*patterns):
    """Files that git tracks or would add (all, or those that match the patterns), relative to ROOT."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
                            cwd=ROOT, check=True, capture_output=True).stdout.decode()
    return sorted(name for name in set(listed.split("\0")) if name and (ROOT / name).is_file())


def finish(complaints, passed):
    """Ends the test: every complaint on a line of its own, or what was proved."""
    for complaint in complaints:
        print(complaint)
    print(f"FAILED: {len(complaints)}" if complaints else f"ok: {passed}")
    sys.exit(1 if complaints else 0)


def skip(reason):
    print(f"SKIPPED: {reason}")
    sys.exit(SKIP)
