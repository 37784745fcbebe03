"""A program of the preset cuda needs LibTorch's CUDA libraries by name; a linker that was not told drops them silently.

Called as FILE PROGRAM; reads the program's dynamic section, so no GPU is needed.
"""

import re
import shutil
import subprocess
import sys

WANTED = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_cpu.so", "libc10.so")
SKIPPED = 77


def main():
    if not shutil.which("nvcc"):
        print("SKIPPED: no nvcc on the PATH, so this is no machine for CUDA builds", file=sys.stderr)
        return SKIPPED
    section = subprocess.run(["readelf", "-d", sys.argv[1]], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\) +Shared library: \[(.+)\]", section)
    missing = [name for name in WANTED if name not in needed]
    print(f"{sys.argv[1]} needs {', '.join(needed)}; missing: {', '.join(missing) or 'none'}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
