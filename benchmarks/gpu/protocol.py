"""What the calls of benchmarks/gpu/run share: lines and their rows, the file that a killed call leaves behind, the time budget, the table.

A call is a list of lines in order of importance. Each line becomes one row of OUT/CALL.json, written under another name and renamed after
every row, so a call that is killed at any moment keeps what it measured, and the same command goes on behind it. Statuses of a row:
    ok            it has values, each with what was predicted
    skipped       it cannot be done here, and why: "needs a card" is the reason where a CPU cannot do it
    refused       the program does not know what the line asks for, in its own words
    failed        it broke: an error, or bits that had to be equal and were not
    not reached   the time of the call was up
    running       it was killed in this line
"""

import copy
import datetime
import gc
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Callable

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TINY = ROOT / "tests/golden/model.safetensors"  # a DyDiT of two blocks, three heads
VERSION = 1                                     # of the layout of CALL.json
TABLE_LINES = 40                                # of what a call prints last
DONE = ("ok", "skipped")
NEEDS_CARD = "needs a card"


class Skip(Exception):
    """The line cannot be done here; the text says why."""


class Refused(Exception):
    """The program does not know what was asked; the text is its answer."""


class Failed(Exception):
    """One line about what went wrong."""


class UserError(Exception):
    """Of what a person gave: one line, exit 2."""


@dataclass
class Line:
    name: str
    what: str
    run: Callable  # (context) -> dict of numbers; values are added by context.value()
    seconds: float = 10  # that it takes on a card: no line begins that would outlast the call


def predictions():
    return json.loads((HERE / "predictions.json").read_text())


# --- the program ---------------------------------------------------------------------------------------------------


def library_path():
    """Folders of LibTorch's libraries, those of this Python's torch: what a carried program is linked to."""
    import importlib.util
    spec = importlib.util.find_spec("torch")
    if not spec:
        return []
    site = pathlib.Path(spec.origin).parents[1]
    return [str(site / "torch/lib"), *sorted(str(path) for path in site.glob("nvidia/*/lib"))]


class Program:
    """dydit, called with the libraries of this Python's torch behind its own."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        before = os.environ.get("LD_LIBRARY_PATH")
        self.environment = {**os.environ, "LD_LIBRARY_PATH": ":".join([*([before] if before else []), *library_path()])}

    def beside(self, name):
        """Another program of the same build, or None."""
        path = self.path.parent / name
        return path if path.exists() else None

    def run(self, *arguments, timeout, prefix=(), environment=None):
        command = [*map(str, prefix), str(self.path), *map(str, arguments)]
        try:
            return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout,
                                  env={**self.environment, **(environment or {})}, errors="replace")
        except subprocess.TimeoutExpired:
            raise Failed(f"{' '.join(command[:4])} ...: no answer after {timeout:.0f} s") from None

    def run_beside(self, name, *arguments, timeout):
        """Another program of the same build."""
        return subprocess.run([self.beside(name), *arguments], capture_output=True, text=True, timeout=timeout, env=self.environment, errors="replace")

    def ask(self, *arguments, timeout, environment=None):
        """The JSON object that a verb prints; Refused where the program does not know the flags, Failed where it breaks."""
        done = self.run(*arguments, "--json", "-q", timeout=timeout, environment=environment)
        if done.returncode == 0:
            return json.loads(done.stdout)
        said = last_error(done.stderr) or f"exit {done.returncode} and no word"
        raise (Refused if done.returncode == 2 else Failed)(said)


def last_error(stderr):
    lines = [line for line in stderr.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "error" in line), lines[-1] if lines else "")


# --- rows ----------------------------------------------------------------------------------------------------------


class Results:
    """OUT/CALL.json. `key` says what the rows are of: rows of something else are not gone on with."""

    def __init__(self, path, key, facts, again=False):
        self.path, self.rows = path, {}
        self.document = {"version": VERSION, **key, **facts, "began": now(), "finished": False, "rows": []}
        if path.exists() and not again:
            self.take_over(key)

    def take_over(self, key):
        try:
            old = json.loads(self.path.read_text())
            rows = {row["name"]: row for row in old["rows"]}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path}: rows of an earlier call were expected, got what cannot be read ({error}); --again begins anew")
        for name, wanted in {"version": VERSION, **key}.items():
            if old.get(name) != wanted:
                raise UserError(f"{self.path}: its rows are of {name} {old.get(name)!r}, this call is of {wanted!r}; "
                                "give another --out, or --again to begin anew")
        self.rows = {name: row for name, row in rows.items() if row["status"] in DONE or row.get("part_of")}
        self.document["began"] = old.get("began")

    def is_done(self, name):
        return name in self.rows and self.rows[name]["status"] in DONE

    def put(self, row):
        self.rows[row["name"]] = row
        self.save()

    def save(self, **facts):
        self.document.update(facts, rows=list(self.rows.values()))
        write_whole(self.path, json.dumps(self.document, indent=1) + "\n")


def write_whole(path, text):
    """Under another name first: whoever reads the file sees the old one or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def in_one_line(error):
    text = str(error).strip()
    return text.splitlines()[0][:400] if text else type(error).__name__


# --- a call --------------------------------------------------------------------------------------------------------


@dataclass
class Context:
    """What a line may use. `values` and `notes` are the row that is being made."""
    call: str
    dry: bool
    out: pathlib.Path
    program: Program
    stage: str
    card: object          # card.Card, or None
    end: float            # time.monotonic() by which the call must be over
    results: Results
    torch: object = None  # the module, where the call needs it
    table: dict = field(default_factory=predictions)
    values: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    current: str = ""     # the line's name
    asked: dict = field(default_factory=dict)

    @property
    def device(self):
        return "cpu" if self.dry else "cuda"

    @property
    def left(self):
        return self.end - time.monotonic()

    def need_card(self):
        if self.dry:
            raise Skip(NEEDS_CARD)

    def value(self, of, measured, unit, predicted=None, kind="prediction", quartiles=None):
        """kind: "prediction", which can be missed by so many per cent; "floor", "limit" or "equal": above, at most, or just that is right."""
        self.values.append(value_of(of, measured, unit, predicted, kind) | ({"low": quartiles[0], "high": quartiles[1]} if quartiles else {}))

    def note(self, text):
        self.notes.append(text)

    def part(self, name, what, values, **more):
        """A row of its own beside the line's, for a line that measures many things and may be killed between them."""
        self.results.put({"name": name, "what": what, "status": "ok", "part_of": self.current, "values": values, "at": now(), **more})

    def run(self, *arguments, most=300, **options):
        return self.program.run(*arguments, timeout=self.timeout(most), **options)

    def ask(self, *arguments, most=300, **options):
        """Of a dry run many lines are the same bench of the tiny model: its answer is kept, and the row says so."""
        key = (*map(str, arguments), str(options))
        if key in self.asked:
            self.note("dry run: the same command as a line before, asked once")
            return copy.deepcopy(self.asked[key])
        answer = self.program.ask(*arguments, timeout=self.timeout(most), **options)
        if self.dry and arguments[0] == "bench":
            self.asked[key] = copy.deepcopy(answer)
        return answer

    def timeout(self, most):
        return max(5.0, min(most, self.left))

    def of_card(self, table):
        """An entry of a table by card ("H100", "H200"), of the card that the predictions are for where there is no other."""
        name = self.card.name if self.card else ""
        return next((value for key, value in table.items() if key in name), table[self.table["card"]])


def value_of(of, measured, unit, predicted=None, kind="prediction"):
    return {"of": of, "measured": measured, "unit": unit, "predicted": predicted, "kind": kind}


def do_line(context, line):
    """Runs a line and returns its row."""
    context.values, context.notes, context.current = [], [], line.name
    row = {"name": line.name, "what": line.what, "status": "running", "at": now(), "values": []}
    context.results.put(dict(row))
    clocks = [context.card.clocks()] if context.card else []
    began = time.monotonic()
    try:
        row["numbers"] = line.run(context) or {}
        row["status"] = "ok"
    except Skip as reason:
        row.update(status="skipped", why=in_one_line(reason))
    except Refused as answer:
        row.update(status="refused", why=in_one_line(answer))
    except Exception as error:  # whatever a line runs into, the next one gets its turn
        row.update(status="failed", why=f"{'' if isinstance(error, Failed) else type(error).__name__ + ': '}{in_one_line(error)}")
    row.update(values=context.values, notes=context.notes, seconds=round(time.monotonic() - began, 3))
    if clocks:
        row["clocks"] = {"before": clocks[0], "after": context.card.clocks()}
    if context.torch and not context.dry:  # the program wants the card's memory, too
        gc.collect()
        context.torch.cuda.empty_cache()
    context.results.put(row)
    return row


def do_call(context, lines, say):
    """All lines that fit; rows that are there already are left as they are."""
    wanted = {line.name for line in lines}
    for line in lines:
        if context.results.is_done(line.name):
            say(f"{line.name}: is there")
            continue
        if context.left < (0 if context.dry else line.seconds):
            context.results.put({"name": line.name, "what": line.what, "status": "not reached", "values": [],
                                 "why": f"{max(context.left, 0):.0f} s were left, it takes {line.seconds:.0f}"})
            continue
        row = do_line(context, line)
        say(f"{row_text(row)}  [{row['seconds']:.1f} s]")
    statuses = [row["status"] for name, row in context.results.rows.items() if name in wanted]
    context.results.save(finished=all(status in (*DONE, "refused", "failed") for status in statuses), ended=now())
    return statuses


# --- what is printed -----------------------------------------------------------------------------------------------


def number(value):
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


SIGNS = {"prediction": "", "floor": ">= ", "limit": "<= ", "equal": "= "}


def value_text(value):
    sign = "" if value["predicted"] is None else SIGNS[value["kind"]]
    return f"{value['of']} {sign}{number(value['predicted'])} -> {number(value['measured'])} {value['unit']}".strip()


def row_text(row):
    if row["status"] == "ok":
        return f"{row['name']}: {'; '.join(map(value_text, row['values'])) or 'done'}"
    return f"{row['name']}: {row['status']}{': ' + row['why'] if row.get('why') else ''}"


def print_table(results, width=150):
    """The last lines of a call; predicted -> measured. What is too long is in the file."""
    rows = list(results.rows.values())
    counts = {status: sum(row["status"] == status for row in rows) for status in dict.fromkeys(row["status"] for row in rows)}
    shown = rows[:TABLE_LINES - 3]
    print(f"{results.document['call']}: predicted -> measured{' (dry run: times of a CPU and a tiny model)' if results.document['dry_run'] else ''}")
    for row in shown:
        text = row_text(row)
        print(text if len(text) <= width else text[:width - 3] + "...")
    if len(rows) > len(shown):
        print(f"... and {len(rows) - len(shown)} more rows")
    print(f"{results.path}: {', '.join(f'{count} {status}' for status, count in counts.items())}", flush=True)


def machine_facts(torch=None):
    facts = {"machine": {"system": platform.platform(), "python": sys.version.split()[0], "cores": os.cpu_count()},
             "commit": commit()}
    if torch:
        facts["machine"]["torch"] = torch.__version__
        if torch.cuda.is_available():
            facts["machine"].update(cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    return facts


def commit():
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"
