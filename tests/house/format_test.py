"""Every C++ file of the project is as clang-format 14, that of Debian 12, would write it; other versions differ."""

import re
import shutil
import subprocess

import house

VERSION = 14
if not shutil.which("clang-format"):
    house.skip("clang-format is not installed")
version = subprocess.run(["clang-format", "--version"], check=True, capture_output=True, text=True).stdout
if f"version {VERSION}." not in version:
    house.skip(f"the house's format is that of clang-format {VERSION}, found: {version.strip()}")

files = house.project_files("*.cpp", "*.h", "*.cu", "*.cuh")
complaints = []
if files:
    run = subprocess.run(["clang-format", "--dry-run", *files], cwd=house.ROOT, capture_output=True, text=True)
    first = {}  # one line a file is enough
    for path, line in re.findall(r"^(\S+?):(\d+):\d+: warning: code should be clang-formatted", run.stderr, re.M):
        first.setdefault(path, line)
    complaints = [f"{path}:{line}: not formatted; run: clang-format -i {path}" for path, line in first.items()]
    if run.returncode and not complaints:
        complaints = [f"clang-format failed: {run.stderr.strip()}"]
house.finish(complaints, f"{len(files)} files are formatted")
