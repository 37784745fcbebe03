"""Writes docs/cli.md: what the program says to --help, verb by verb. Run it after every change of a flag:

    python3 tools/make_cli_docs.py build/release/dydit
"""

import os
import pathlib
import re
import subprocess
import sys

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEAD = """# Command line

Made by `tools/make_cli_docs.py` from the program's own `--help`; do not edit.

Values come from, each beating the one before: the default, `--config FILE` (TOML with the flags' names; an unknown key
is an error), `DYDIT_NAME` in the environment (`--cfg-scale` is `DYDIT_CFG_SCALE`), the flag. `DYDIT_ISA` caps the
processor's instructions: avx2, avx512, avx512_bf16 or amx.

Decisions and progress go to stderr, results to stdout. Exit status: 0 done, 1 failed, 2 usage, 130 cancelled.
`dydit --version` (with `--json`: as one object) says what a bug report needs: version, commit, LibTorch, oneDNN and
the instructions in use.
"""
MACHINE_DEFAULTS = {"--threads": "cores"}  # defaults that depend on where --help is asked


def ask(program, *args):
    """What the program says, with no variable or configuration of ours."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DYDIT_")}
    done = subprocess.run([program, *args], check=True, capture_output=True, text=True, env=environment)
    return done.stdout.strip()


def without_machine(text):
    for flag, word in MACHINE_DEFAULTS.items():
        text = re.sub(rf"^( .*{flag} .*)=\d+$", rf"\1={word}", text, flags=re.MULTILINE)
    return text


def make_page(program):
    overview = ask(program, "--help")
    # The version changes with every release, the flags do not.
    parts = [HEAD, block(re.sub(r"^dydit \S+:", "dydit:", overview))]
    for verb in re.findall(r"^  (\w+)  ", overview, re.MULTILINE):
        parts += [f"## {verb}\n", block(without_machine(ask(program, verb, "--help")))]
    return "\n".join(parts)


def block(text):
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"```text\n{lines}\n```\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} PROGRAM")
    PAGE.write_text(make_page(sys.argv[1]))
    print(f"wrote {PAGE}")
