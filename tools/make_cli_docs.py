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
is an error), `DYDIT_NAME` in the environment (`--cfg-scale` is `DYDIT_CFG_SCALE`; every long name of a flag has one), the flag.
An empty variable counts as none; one that is not UTF-8 or holds control characters is an error. `DYDIT_ISA` caps the
processor's instructions: avx2, avx512, avx512_bf16 or amx. `--verbose` lists what was given and where, and variables that look like
a slip; an error names the variable or the file that the value came from.

Numbers are decimal: no NaN, infinity, hexadecimal or text after them; whole numbers have neither a point nor an exponent.

A flag that would have no effect (`--eta` without `--sampler ddim`, `--svg` of a PNG) is an error, in a `--config` file, too. From
the environment, which is set for many runs, it is passed over with a note. Of two flags that exclude each other the stronger one
counts; two from one place are an error.

`--classes` takes items with commas between. A whole number is a label, whatever the classes are called; where there is no such
label, a class that is called so. Anything else is a name: of a class as a whole, or one of the names of a class that has several
(`tench` of `tench, Tinca tinca`); a name of several classes is an error that lists their labels. `tench, Tinca tinca` is one class
where one is called so as a whole; in double quotes an item is never taken apart (`""` for a quote in it), and `name:10` is the class
that is called 10. Images record labels, so the command that `inspect` prints makes the same ones.

`--class-names FILE`: UTF-8, one name a line, with or without a byte order mark; empty lines do not count.

`--out`: in the file's name (not in its folder) `%d` or `%03d` is the image's number and `%%` a percent sign. A grid has at most 65536
pixels a side, which is what can be read again.

Decisions and progress go to stderr, results to stdout. Exit status: 0 done, 1 failed, 2 usage, 130 cancelled (a verb that
cannot stop half-way, and any but a training run, which is saving, at the second signal, dies of SIGINT, SIGTERM or SIGHUP itself).

A closed stream is as good as /dev/null, and what stderr does not take is dropped; a result that stdout does not take is
exit status 1. `--out /dev/stdout` (`--csv`, `--latents`, `/dev/fd/N` likewise) writes to the stream from where it stands and has
it to itself: results go to stderr then. It is refused together with `--json`, where both streams are one, and for `--npz`.

Targets are tried before work begins. Missing folders are made. A target that is also an input, or the same file as another
target, is refused. Results are printed before the files of `--csv` and `--svg` are written; where one of several files fails,
the others are written and the exit status is 1. No file is left half written, whatever ends the program. Weights that
another program writes to before a verb has taken them are an error; afterwards it makes no difference.

`dydit --version` (with `--json`: as one object) says what a bug report needs: version, commit, LibTorch, oneDNN and
the instructions in use.

Without `--threads` a run takes the physical cores that it may use, or fewer where a control group's quota of processor
time is smaller (rounded up). `OMP_NUM_THREADS` is not obeyed, since launchers set it to 1 unasked: take `-t` or
`DYDIT_THREADS`. What surely cannot fit into the memory of the machine (swap included), of its control group or of
`ulimit -v` is refused before it is allocated, with the need, the limit and a way out.
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
