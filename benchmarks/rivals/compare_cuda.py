"""Times PyTorch's ways to run a (Dy)DiT on a GPU against each other, and dydit's GPU engine between their laps.

    python benchmarks/rivals/compare_cuda.py [--cases XL/2:2,XL/2:16,XL/2:64,S/2:64] [--json FILE] [--dydit build/gpu/dydit]
    python benchmarks/rivals/compare_cuda.py --dry-run

All of bfloat16, in one process: eager; eager in a CUDA graph; torch.compile block by block, as it is and with max-autotune, launched and in a
graph; each with flash and with cuDNN attention. The masked DyDiT as published (float32 weights under autocast, attention by matmul) and all in
bfloat16. The sliced DyDiT (dit_cuda.py), compiled, launched and in a graph: the honest rival of skipping. Every rival is warmed for a second,
then they take turns, a lap each, so that a slow minute hits all of them; medians and quartiles, by CUDA events. A batch is rows of
a forward: one guided image is two. Not compared: TensorRT (gigabytes that are no Python package of PyTorch) and FlashAttention 4 (for newer
cards, not in PyTorch); JAX. --dry-run runs every line on the CPU with a tiny model (torch.compile without a code generator, one
attention), to see that it works: its times say nothing.
"""

import argparse
import json
import os
import pathlib
import sys
import time

from laps import Clock, quartiles

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES = (("XL/2", 16), ("XL/2", 2), ("XL/2", 64), ("S/2", 64))  # in order of importance
SHARES = {"heads": 9 / 16, "groups": 9 / 16, "tokens": 200 / 256}  # .49 of the work of XL/2
NOT_COMPARED = "TensorRT (gigabytes that are no package of PyTorch), FlashAttention 4 (newer cards, not in PyTorch) and JAX are not compared"
NEEDS_CARD = "needs a card"


class Rival:
    """kind: static, masked or sliced. how: eager, compile, autotune. A graph replays what was captured of it."""

    def __init__(self, kind, how, attention, graph=False, autocast=False):
        self.kind, self.how, self.attention, self.graph, self.autocast = kind, how, attention, graph, autocast

    @property
    def name(self):
        words = {"compile": "torch.compile", "autotune": "torch.compile max-autotune", "eager": "eager"}
        kind = {"static": "static", "masked": "masked, as published" if self.autocast else "masked, bf16", "sliced": "sliced .49"}
        return f"{kind[self.kind]}, {words[self.how]}, {self.attention}{', graph' if self.graph else ''}"

    def needs_card(self):
        return self.graph or self.attention == "cudnn"

    def forward(self, torch, clock, size, batch, dry):
        from dit_cuda import make_inputs, make_model, slice_model
        matmul = self.attention == "matmul"
        attention = None if matmul else "sdpa" if dry else self.attention
        dtype = torch.float32 if self.autocast else torch.bfloat16
        model = make_model(size, clock.device, dtype, attention, dynamic=self.kind != "static", fused_attention=not matmul)
        if self.kind == "sliced":
            slice_model(model, **SHARES)
        if self.how != "eager":
            mode = "max-autotune-no-cudagraphs" if self.how == "autotune" else None
            options = {"backend": "eager"} if dry else {"mode": mode}
            for index, block in enumerate(model.blocks):
                model.blocks[index] = torch.compile(block, dynamic=False, **options)
        inputs = make_inputs(model.config, batch, clock.device, dtype)

        def forward():
            with torch.no_grad(), torch.autocast(clock.device.split(":")[0], torch.bfloat16, enabled=self.autocast):
                return model(*inputs, *self.gates(model))

        return clock.capture(forward) if self.graph else forward

    def gates(self, model):
        if self.kind != "masked":
            return ()
        from dit_torch import Gates
        return (Gates(model.config),)


def rivals():
    """In order of importance: what there is no time for is left out from the end."""
    both = ("flash", "cudnn")
    compiled = [Rival("static", how, attention, graph) for how in ("compile", "autotune") for graph in (True, False) for attention in both]
    sliced = [Rival("sliced", "compile", attention, graph) for graph in (True, False) for attention in both]
    eager = [Rival("static", "eager", attention, graph) for graph in (False, True) for attention in both]
    masked = [Rival("masked", "eager", "matmul", autocast=True), Rival("masked", "eager", "flash")]
    return [*compiled[:4], *sliced, *eager, *masked, *compiled[4:]]


def case_name(size, batch):
    return f"{size} batch {batch}"


def dydit_turn(ask, size, batch, dry):
    """Milliseconds of a forward by dydit's GPU engine: {"dydit, static": ..., "dydit, .49": ...}. `ask` runs the program and reads its JSON."""
    tiny = ["--model", ROOT / "tests/golden/model.safetensors", "--steps=2", "--repeats=1"]
    shares = [f"--{part}={share}" for part, share in SHARES.items()]
    said = ask("bench", *(tiny if dry else [f"--size=DiT-{size}", "--steps=8", "--repeats=3"]), *shares, f"--batch={min(batch, 2) if dry else batch}",
               "--dtype=bf16", "--engine=torch", f"--device={'cpu' if dry else 'cuda'}")
    return {f"dydit, {label}": said[mode]["ms_per_sample"] * said["batch"]
            for label, mode in (("static", "static"), (".49", "dynamic")) if mode in said}


def compare(torch, size, batch, *, dry=False, rounds=7, seconds=float("inf"), ask=None, on_row=lambda name, row: None, say=print, warm_up=1.0):
    """{name: row} of a case. on_row(name, row) is called whenever a row is new or has another lap: what was measured before somebody kills
    this is kept. A row: status, why, laps in ms, median, low and high quartile, seconds of setting up."""
    end = time.monotonic() + seconds
    clock = Clock(torch, "cpu" if dry else "cuda", warm_up=warm_up)
    rows, ready, answers = {}, {}, True
    if dry:
        torch.set_num_threads(1)  # of a machine that may have better things to do
        size, batch, rounds = "tiny", min(batch, 2), min(rounds, 2)

    def put(name, **row):
        rows[name] = row
        on_row(name, row)

    def own_turn():
        nonlocal answers
        if not ask or not answers:
            return
        try:
            for name, lap in dydit_turn(ask, size, batch, dry).items():
                add_lap(rows.setdefault(name, {"status": "ok", "laps": []}), lap)
                on_row(name, rows[name])
        except Exception as error:  # the rivals go on without it
            answers = False
            put("dydit", status="refused" if type(error).__name__ == "Refused" else "failed", why=str(error).splitlines()[0])

    if "torch._dynamo" in sys.modules:  # else another batch would be compiled for any, or not at all after so many
        torch._dynamo.reset()
    own_turn()
    for rival in rivals():
        if dry and rival.needs_card():
            put(rival.name, status="skipped", why=NEEDS_CARD)
            continue
        if time.monotonic() > end - seconds * .3 and ready:  # the laps need their time
            put(rival.name, status="not reached", why="the time of the case was up")
            continue
        began = time.monotonic()
        try:
            work = rival.forward(torch, clock, size, batch, dry)
            calls = clock.warm(work)
        except ModuleNotFoundError as error:  # torch.compile's own: sympy and the like, where PyTorch was installed without them
            put(rival.name, status="skipped", why=f"this Python has no package {error.name}")
            continue
        except Exception as error:  # one rival that does not run here takes nobody with it
            put(rival.name, status="failed", why=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}")
            continue
        ready[rival.name] = (work, calls)
        put(rival.name, status="ok", laps=[], setup_seconds=round(time.monotonic() - began, 2))
        say(f"{case_name(size, batch)}: {rival.name}: ready after {time.monotonic() - began:.1f} s")
    for turn in range(rounds):
        if turn and time.monotonic() > end:
            break
        for name, (work, calls) in ready.items():
            add_lap(rows[name], clock.lap(work, calls))
            on_row(name, rows[name])
        if turn == rounds // 2:
            own_turn()
    own_turn()
    return rows


def add_lap(row, lap):
    row["laps"].append(lap)
    row["median"], row["low"], row["high"] = quartiles(row["laps"])


def print_case(title, rows):
    print(f"\n{title}\n\n| program | ms a forward | quartiles | laps |\n|---|---|---|---|")
    for name, row in rows.items():
        if row.get("laps"):
            print(f"| {name} | {row['median']:.3f} | {row['low']:.3f} to {row['high']:.3f} | {len(row['laps'])} |")
        else:
            print(f"| {name} | {row['status']}: {row.get('why', 'no lap')} | | |")


def parse_cases(text):
    cases = []
    for word in text.split(","):
        size, _, batch = word.partition(":")
        if size not in {case[0] for case in CASES} or not batch.isdigit() or int(batch) < 1:
            raise argparse.ArgumentTypeError(f"{word!r} is no case; SIZE:BATCH is wanted, e.g. XL/2:16, sizes XL/2 and S/2")
        cases.append((size, int(batch)))
    return cases


def program_asker(path):
    sys.path.insert(0, str(ROOT / "benchmarks/gpu"))
    from protocol import Program
    program = Program(path)
    return lambda *arguments: program.ask(*arguments, timeout=300)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=NOT_COMPARED)
    parser.add_argument("--cases", type=parse_cases, default=list(CASES), help="SIZE:BATCH,...; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of a case; what does not fit is left out, and said")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows here, after every lap")
    parser.add_argument("--dydit", type=pathlib.Path, help="a program with the GPU engine, which takes its turns")
    parser.add_argument("--cache", type=pathlib.Path, help="folder of what torch.compile makes (default: beside --json, else its own)")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with a tiny model")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds: {args.rounds}; at least 1 lap is wanted")
    if args.dydit and not os.access(args.dydit, os.X_OK):
        parser.error(f"--dydit: {args.dydit} is no program; benchmarks/gpu/build makes one")
    keep_caches(args.cache or args.json and args.json.parent / "compile-cache")
    try:
        import torch
    except ImportError as error:
        parser.error(f"{sys.executable} has no PyTorch ({error}); take a Python that has, e.g. build/venv/bin/python of scripts/setup --tests")
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA card here; with --dry-run every line runs on the CPU")
    document = {"dry_run": args.dry_run, "torch": torch.__version__, "not_compared": NOT_COMPARED, "cases": {}}
    for size, batch in args.cases:
        rows = document["cases"].setdefault(case_name(size, batch), {})

        def keep(name, row):
            rows[name] = row
            if args.json:
                part = args.json.with_name(args.json.name + ".part")
                part.write_text(json.dumps(document, indent=1))
                os.replace(part, args.json)

        compare(torch, size, batch, dry=args.dry_run, rounds=args.rounds, seconds=args.seconds, on_row=keep,
                ask=program_asker(args.dydit) if args.dydit else None, say=lambda text: print(text, file=sys.stderr, flush=True))
        print_case(case_name(size, batch), rows)
    print(f"\n{NOT_COMPARED}")
    return 0


def keep_caches(folder):
    """What torch.compile makes is kept, so that a second call does not compile again. Before torch is imported."""
    if folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))


if __name__ == "__main__":
    sys.exit(main())
