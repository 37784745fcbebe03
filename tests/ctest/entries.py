"""Writes the ctest entries of a program of gtest cases: one for each source file, tests/io/png_test.cpp is io.png.

    entries.py PROGRAM LABEL FILE.cmake

A process of its own for every case would spend most of its time on loading LibTorch. Run after each link and from the
program's own list, so every case is in exactly one entry. The instances "Levels" of a suite have an entry for each level,
engine.cpu_engine.avx2: LibTorch chooses its instructions once in a process.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

TIMEOUT = 1800  # seconds; under sanitizers and beside another test


def cases_of(program):
    """(suite, case, source file) of every case, in the program's order."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "cases.json"
        subprocess.run([program, "--gtest_list_tests", f"--gtest_output=json:{path}"], check=True, stdout=subprocess.DEVNULL)
        suites = json.loads(path.read_text())["testsuites"]
    return [(suite["name"], case["name"], case["file"]) for suite in suites for case in suite["testsuite"]]


def entry_and_pattern(suite, case, file):
    """The case's entry, and gtest's pattern of its suite there."""
    name = re.fullmatch(r"(?:.*/)?tests/(\w+)/(\w+)_test\.cpp", file).expand(r"\1.\2")
    level = case.split("/")[-1]
    return (f"{name}.{level}", f"{suite}.*/{level}") if suite.startswith("Levels/") else (name, f"{suite}.*")


def entries_of(cases):
    """Entry -> gtest's filter; the cases of a suite that is in two files are named one by one."""
    homes, filters = {}, {}
    for case in cases:
        entry, pattern = entry_and_pattern(*case)
        homes.setdefault(pattern, set()).add(entry)
    for case in cases:
        entry, pattern = entry_and_pattern(*case)
        filters.setdefault(entry, {})[pattern if len(homes[pattern]) == 1 else f"{case[0]}.{case[1]}"] = None
    return {entry: ":".join(patterns) for entry, patterns in filters.items()}


def cmake_of(program, label, entries):
    return "".join(f'add_test({entry} "{program}" "--gtest_filter={filter}")\n'
                   f'set_tests_properties({entry} PROPERTIES LABELS "{label}" TIMEOUT {TIMEOUT}'
                   ' FAIL_REGULAR_EXPRESSION "Running 0 tests")\n' for entry, filter in entries.items())


if __name__ == "__main__":
    program, label, file = sys.argv[1:]
    pathlib.Path(file).write_text(cmake_of(program, label, entries_of(cases_of(program))))
