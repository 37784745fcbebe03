"""The commands of README.md work: every command of every ```sh block is run in order, in the root of the
repository, by `bash -e`; each must exit 0. A block that starts with ```sh no-test, or with any other word than sh, is
not run; nor are the commands that would fetch this repository or start this test again (NOT_RUN)."""

import re
import subprocess
import sys
import time

import house

NOT_RUN = re.compile(r"(git clone|cd|scripts/test)\b")
ASSIGNMENT = re.compile(r"(export\s+)?\w+=\S*")  # is kept for the commands after it
TIMEOUT_S = 900


def blocks(text):
    """(line number of the first command, words after the fence, lines) of every fenced block."""
    fence = None
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r"```+(.*)", line)
        if not match:
            if fence:
                fence[2].append(line)
        elif fence:
            yield fence
            fence = None
        else:
            fence = (number + 1, match[1].split(), [])


def is_complete(command):
    """Whether bash can run it as it is: a loop, a quote or a here-document may need the next line too."""
    run = subprocess.run(["bash", "-n"], input=command + "\n", capture_output=True, text=True)
    return run.returncode == 0 and not run.stderr and not command.endswith("\\")


def commands(first, lines):
    """(line number, command) of a block; comments and empty lines are left out."""
    command, start = "", first
    for number, line in enumerate(lines, first):
        if not command and (not line.strip() or line.lstrip().startswith("#")):
            continue
        if not command:
            start = number
        command = f"{command}\n{line}" if command else line
        if is_complete(command):
            yield start, command.strip()
            command = ""
    if command:
        yield start, command.strip()


def self_check():
    loop, here = "for i in 1; do\n  echo $i\ndone", "cat <<E\nz\nE"
    text = f"```sh\n# a\nA=1\necho x \\\n  y\n{loop}\n{here}\n```\n```sh no-test\nfalse\n```"
    found = [(info, list(commands(first, lines))) for first, info, lines in blocks(text)]
    wanted = [(["sh"], [(3, "A=1"), (4, "echo x \\\n  y"), (6, loop), (9, here)]),
              (["sh", "no-test"], [(14, "false")])]
    if found != wanted:
        house.finish([f"self-check: wanted {wanted}, got {found}"], "")


def run(number, command, setting):
    print(f"README.md:{number}: {command}", flush=True)
    started = time.monotonic()
    try:
        done = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", "\n".join([*setting, command])], cwd=house.ROOT,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=TIMEOUT_S)
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        code, output = f"none after {TIMEOUT_S} s", late.stdout or b""
    if code != 0:
        sys.stdout.write(output.decode(errors="replace"))
        house.finish([f"README.md:{number}: exit code {code}: {command}"], "")
    print(f"  {time.monotonic() - started:.1f} s", flush=True)


self_check()
readme = house.ROOT / "README.md"
if not readme.exists():
    house.finish(["README.md is missing"], "")
setting, ran, left_out, untested = [], 0, 0, 0
for first, info, lines in blocks(readme.read_text()):
    if info != ["sh"]:
        untested += info[:1] == ["sh"]
        continue
    for number, command in commands(first, lines):
        if NOT_RUN.match(command):
            print(f"README.md:{number}: not run here: {command}")
            left_out += 1
        elif ASSIGNMENT.fullmatch(command):
            setting.append(command)
        else:
            run(number, command, setting)
            ran += 1
complaints = [] if ran else ["README.md: no ```sh block with a command to run"]
house.finish(complaints, f"{ran} commands of README.md work; {left_out} not run, {untested} blocks marked no-test")
