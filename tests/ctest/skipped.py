"""Passes ctest's output on and says before its summary what was skipped, and why.

    ctest ... | skipped.py LastTest.log

Skipped are entries, as ctest says itself, and single tests of an entry that passed: gtest's GTEST_SKIP, and the lines
"SKIPPED NAME: REASON" that our tests in Python print.
"""

import pathlib
import re
import sys

ENTRY = re.compile(r"^\d+/\d+ Test: (\S+)\n.*?^-+\n(.*?)^<end of output>$", re.MULTILINE | re.DOTALL)
GTEST = re.compile(r"^\[ RUN      \] (\S+)\n((?:(?!\[ RUN).*\n)*?)\[  SKIPPED \] \1 \(", re.MULTILINE)
OURS = re.compile(r"^(?:.*: )?SKIPPED(?: (\S+))?: (.*)$", re.MULTILINE)
WHOLE = re.compile(r"Test +#\d+: (\S+) \.+ *\*\*\*Skipped")
SUMMARY = re.compile(r"^\d+% tests passed, ")


def reason_of(lines):
    """Of what gtest printed between a test's beginning and its end."""
    return " ".join(line for line in lines.splitlines() if line and not re.search(r":\d+: Skipped$", line))


def skipped_in(output):
    """(test or None for the whole entry, reason)."""
    return ([(name, reason_of(lines)) for name, lines in GTEST.findall(output)] +
            [(name or None, reason) for name, reason in OURS.findall(output)])


def report(log, whole):
    """Lines: each skipped entry and test with its reason; tests of one entry for one reason in one line."""
    lines = []
    for entry, output in ENTRY.findall(log):
        skipped = skipped_in(output)
        if entry in whole and not skipped:
            skipped = [(None, "".join(output.splitlines()[-1:]) or "no output")]
        by_reason = {}
        for name, reason in skipped:
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            what = f", {len(names)} tests" if len(names) > 1 else f", {names[0]}" if names[0] else ""
            lines.append(f"  {entry}{what}: {reason}")
    return lines


def main(log):
    whole, summary = set(), []
    for line in sys.stdin:
        whole.update(WHOLE.findall(line))
        if summary or SUMMARY.search(line):
            summary.append(line)
        else:
            print(line, end="", flush=True)
    if summary:
        lines = report(pathlib.Path(log).read_text(errors="replace"), whole)
        print("skipped:" if lines else "skipped: nothing", *lines, "", sep="\n")
    print("".join(summary), end="", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
