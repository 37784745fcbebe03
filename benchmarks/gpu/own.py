"""The call ours: dydit's GPU engine by `dydit bench`, static and dynamic model in turns in one process. Batches are rows of a forward.

Of what a bench prints, fields that the program does not have are kept as null and said."""

import json
import struct

import setup_path  # noqa: F401  (benchmarks/rivals)
from plans import changing_plan, even_timesteps
from protocol import NEEDS_CARD, ROOT, TINY, Line, Refused, Skip, value_of

THRESHOLD_MODEL = ROOT / "models/dydit-cifar10-0.5.safetensors"
# Of attention and MLP at XL/2: heads, groups, tokens.
SHARES = {".49": (9 / 16, 9 / 16, 200 / 256), ".85": (15 / 16, 15 / 16, .85), ".33": (7 / 16, 7 / 16, 160 / 256)}
TOLERATED = ("device", "graphs", "batch_invariant", "slot_bytes_copied", "redone_forwards", "peak_memory_mb")


def engine(context):
    return ["--dtype", "bf16", "--engine", "torch", "--device", context.device]


def laps(context, steps=8, repeats=7):
    return ["--steps", 2, "--repeats", 2] if context.dry else ["--steps", steps, "--repeats", repeats]


def model(context, size, input_size=32):
    if context.dry:
        return ["--model", TINY]
    return ["--size", size, *(["--input-size", input_size] if input_size != 32 else [])]


def share_flags(share):
    return [f"--{part}={value}" for part, value in zip(("heads", "groups", "tokens"), share)]


def rows_of(context, batch):
    return min(batch, 2) if context.dry else batch


def forward_ms(said, mode):
    return said[mode]["ms_per_sample"] * said["batch"]


def quartiles_ms(said, mode):
    """As far apart as the program tells: it calls them low and high."""
    return [said[mode][key] * said["batch"] for key in ("ms_low", "ms_high")] if "ms_low" in said[mode] else None


def keep(context, said, dynamic="dynamic"):
    """The numbers of a bench for the row: milliseconds a forward of both, quartiles, shares, and what the engine says of itself."""
    missing = [key for key in TOLERATED if key not in said]
    if missing:
        context.note(f"the program does not say {', '.join(missing)}")
    numbers = {key: said.get(key) for key in (*TOLERATED, "model", "batch", "steps", "unit", "peak_rss_mb")}
    for mode in ("static", dynamic):
        if mode in said:
            numbers[mode] = {key: said[mode].get(key) for key in ("ms_per_sample", "ms_low", "ms_high", "gflops", "peak_share", "required_share",
                                                                  "executed_share", "realised_share", "operators")}
    return numbers


def values_of(context, said, label, predicted=None, dynamic="dynamic"):
    """Static, dynamic and the realised share beside what was predicted."""
    predicted = predicted or {}
    context.value("static", forward_ms(said, "static"), "ms", predicted.get("static"), quartiles=quartiles_ms(said, "static"))
    if dynamic in said:
        context.value(label, forward_ms(said, dynamic), "ms", predicted.get(".49") if label == ".49" else None, quartiles=quartiles_ms(said, dynamic))
        context.value(f"realised, {label}", said[dynamic]["realised_share"], "", predicted.get("realised") if label == ".49" else None)
        executed = said[dynamic]["executed_gmacs"] / said[dynamic]["required_gmacs"]
        context.value("executed over required", executed, "", context.table["limits"]["executed over required, keep counts"] + .005, "limit")
    if predicted.get("peak share"):
        context.value("static: of the measured peak", said["static"].get("peak_share"), "", predicted["peak share"])


def bench(size, batch, label=".49", *more, input_size=32, case=None):
    """A line of static and dynamic at one of SHARES. `case`: whose predictions, where it is what they are about."""
    def run(context):
        said = context.ask("bench", *model(context, f"DiT-{size}", input_size), "--batch", rows_of(context, batch), *laps(context),
                           *share_flags(SHARES[label]), *engine(context), *more)
        values_of(context, said, label, context.table["stages"][context.stage].get(case))
        return keep(context, said)
    return run


def ask_or_skip(context, *arguments):
    """A program may say that --graphs is for cards alone; then it is a card that the line needs."""
    try:
        return context.ask(*arguments)
    except Refused as answer:
        if context.dry and str(answer).startswith("dydit: error: --graphs"):
            raise Skip(NEEDS_CARD) from None
        raise


def switched(batch, name, *flags):
    """The same as the line of that batch but for one switch: only what changes is worth a value."""
    def run(context):
        if "invariant" in name:
            context.need_card()
        said = ask_or_skip(context, "bench", *model(context, "DiT-XL/2"), "--batch", rows_of(context, batch), *laps(context),
                           *share_flags(SHARES[".49"]), *engine(context), *flags)
        values_of(context, said, ".49", context.table["any_k_order"].get(context.stage, {}).get(f"XL/2 batch {batch}") if "invariant" in name else None)
        before = (context.results.rows.get(f"XL/2 {batch} .49") or {}).get("numbers")
        if before and before.get("dynamic"):
            ratio = before["dynamic"]["ms_per_sample"] / said["dynamic"]["ms_per_sample"]
            limit = context.table["limits"].get(f"invariance costs, batch {batch}") if "invariant" in name else None
            context.value("time with the engine's own choice over this", ratio, "x", limit and 1 + limit, "limit" if limit else "prediction")
        return keep(context, said)
    return run


def threshold(size, batch, path=None):
    """Routers decide: how many tokens a step keeps is guessed, what the guess costs is executed over required."""
    def run(context):
        which = ["--model", path] if path else model(context, size)
        said = context.ask("bench", *which, "--batch", rows_of(context, batch), *laps(context, steps=50 if path else 8), *engine(context))
        for mode in ("static", "dynamic"):
            context.value(mode, forward_ms(said, mode), "ms", quartiles=quartiles_ms(said, mode))
        context.value("required", said["dynamic"]["required_share"], "")
        context.value("realised", said["dynamic"]["realised_share"], "")
        context.value("executed over required", said["dynamic"]["executed_gmacs"] / said["dynamic"]["required_gmacs"], "",
                      context.table["limits"]["executed over required, threshold"], "limit")
        context.value("steps run again", said.get("redone_forwards"), "")
        return keep(context, said)
    return run


def slots(batch, flips):
    """Plans that flip some parts a step, or all of them: what moving weights into slots costs."""
    def run(context):
        depth, heads, tokens, on, kept = (2, 3, 64, 2, 50) if context.dry else (28, 16, 256, 9, 200)
        name = f"flips-{'all' if flips is None else flips}"
        path = context.out / f"{name}.plan.json"
        path.write_text(changing_plan(name, depth, heads, tokens, even_timesteps(2 if context.dry else 8), on, kept, flips))
        said = context.ask("bench", *model(context, "DyDiT-XL/2"), "--batch", rows_of(context, batch), "--repeats", 2 if context.dry else 7,
                           "--plan", path, *engine(context))
        values_of(context, said, name, dynamic="dynamic cached")
        copied = said.get("slot_bytes_copied", said.get("dynamic cached", {}).get("slot_bytes_copied"))
        context.value("bytes copied into slots", copied, "", 0 if flips == 0 else None, "equal" if flips == 0 else "prediction")
        return keep(context, said, "dynamic cached")
    return run


def guided(steps, batch):
    """Whole guided runs, everything included: host work, noise, first and last step."""
    def run(context):
        said = context.ask("bench", *model(context, "DiT-XL/2"), "--run", "--cfg-scale", 1.5, "--batch", rows_of(context, batch),
                           "--steps", 2 if context.dry else steps, "--repeats", 2 if context.dry else 3, *share_flags(SHARES[".49"]), *engine(context))
        for mode in ("static", "dynamic"):
            context.value(f"{mode}, an image", said[mode]["ms_per_sample"] / 1e3, "s")
        context.value("realised", said["dynamic"]["realised_share"], "")
        return keep(context, said)
    return run


def by_kernel(batch):
    """Time of every operator in plain launches (which adds gaps), beside the floor; and the difference of dynamic and r x static by
    operator, which adds up to what is not realised."""
    def run(context):
        said = context.ask("bench", *model(context, "DiT-XL/2"), "--batch", rows_of(context, batch), *laps(context), *share_flags(SHARES[".49"]),
                           "--profile", *engine(context))
        numbers = keep(context, said)
        if not all((said[mode].get("operators") or {}).get("all") for mode in ("static", "dynamic")):
            context.note("the program does not say the time of operators")
            return numbers
        table, required = operators(said), said["dynamic"]["required_share"]
        for name, row in table.items():
            if row["static_us"] or row["dynamic_us"]:
                context.value(f"{name}: .49 over r x static", row["lost_us"], "us")
        context.value("sum of what is lost", sum(row["lost_us"] for row in table.values()), "us")
        return numbers | {"by_operator": table, "required_share": required}
    return run


def operators(said):
    """{operator: microseconds of a forward, static, dynamic, and dynamic - r static}."""
    required, batch = said["dynamic"]["required_share"], said["batch"]
    static, dynamic = ({name: ms * batch * 1e3 for name, ms in said[mode]["operators"]["all"].items()} for mode in ("static", "dynamic"))
    return {name: {"static_us": static.get(name, 0), "dynamic_us": dynamic.get(name, 0), "lost_us": dynamic.get(name, 0) - required * static.get(name, 0)}
            for name in dict.fromkeys([*static, *dynamic])}


# --- staircases ----------------------------------------------------------------------------------------------------


def four_blocks(context):
    """A DyDiT of four XL blocks with random weights and every router on, written once: it is loaded in a second, and a staircase has many steps."""
    path = context.out / "four-blocks.safetensors"
    if context.dry:
        return TINY
    return path if path.exists() else write_blocks(path, hidden_size=1152, depth=4, num_heads=16)


def write_blocks(path, **config):
    import torch
    from dit_torch import Config, DiT
    torch.manual_seed(0)
    state = DiT(Config(**config, dynamic=True)).state_dict()
    state = {name: tensor if tensor.any() else torch.randn_like(tensor) * .02 for name, tensor in state.items()}
    header, at = {}, 0
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in state.items()}
    for name, tensor in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, at := at + 2 * tensor.numel()]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.view(torch.uint8).numpy().tobytes())
    return path


def staircase(kind, batch):
    """Heads 1..16, or tokens 1/16..16/16; one row for each, so that a killed call keeps those it has."""
    def run(context):
        path, count, all_ms = four_blocks(context), 2 if context.dry else 16, {}
        which = ["--model", path]
        for step in sorted(range(1, count + 1), key=lambda step: (step % 4 != 0, step)):
            if context.left < 4 and not context.dry:
                context.note(f"{count - len(all_ms)} of {count} not reached")
                break
            said = context.ask("bench", *which, "--batch", rows_of(context, batch), *laps(context), f"--{kind}={step / count}", *engine(context))
            all_ms[step] = forward_ms(said, "dynamic")
            context.part(f"{kind} {step}/{count} batch {batch}", f"{step} of {count} {kind}, four blocks",
                         [value_of(kind, all_ms[step], "ms")])
        context.value("least over most", min(all_ms.values()) / max(all_ms.values()), "x")
        return {"milliseconds": dict(sorted(all_ms.items()))}
    return run


def lines(context):
    def forwards(size, batch, label=".49", seconds=14, case=True, input_size=32):
        name = size if input_size == 32 else f"{size}-{8 * input_size}"
        return Line(f"{name} {batch} {label}", f"DiT-{name}, batch {batch}: static and {label}",
                    bench(size, batch, label, input_size=input_size, case=f"{name} batch {batch}" if case else None), seconds)

    def switch(batch, name, *flags):
        return Line(f"XL/2 {batch} {name}", f"DiT-XL/2, batch {batch}: {name}", switched(batch, name, *flags), 14)

    return [
        *[forwards("XL/2", batch) for batch in (16, 2, 64)],
        forwards("S/2", 64, seconds=6),
        Line("kernels 16", "DiT-XL/2, batch 16: time by operator", by_kernel(16), 14),
        Line("kernels 2", "DiT-XL/2, batch 2: time by operator", by_kernel(2), 14),
        Line("threshold, trained", "the shipped CIFAR-10 DyDiT by its own routers, 50 steps", threshold(None, 64, THRESHOLD_MODEL), 8),
        Line("threshold, random", "DyDiT-XL/2, batch 16: random routers", threshold("DyDiT-XL/2", 16), 15),
        switch(2, "graphs on", "--graphs", "on"),
        switch(2, "graphs off", "--graphs", "off"),
        switch(16, "graphs on", "--graphs", "on"),
        switch(16, "graphs off", "--graphs", "off"),
        switch(2, "not batch-invariant", "--no-batch-invariant"),
        switch(16, "not batch-invariant", "--no-batch-invariant"),
        Line("slots, none", "a plan that flips nothing, batch 2", slots(2, 0), 14),
        Line("slots, two", "a plan that flips two heads and two groups a block and step, batch 2", slots(2, 2), 14),
        Line("slots, all", "a plan that draws all sets anew at every step, batch 2", slots(2, None), 14),
        Line("run 50", "50 guided steps of 8 images", guided(50, 8), 25),
        *[forwards("XL/2", batch, label) for label in (".85", ".33") for batch in (16, 2)],
        forwards("XL/2", 2, input_size=64, seconds=18),
        forwards("B/2", 16, seconds=8),
        forwards("S/2", 16, seconds=6),
        forwards("S/2", 2, seconds=6),
        *[forwards("XL/2", batch) for batch in (1, 4, 8, 32)],
        *[forwards("XL/2", 64, label) for label in (".85", ".33")],
        Line("heads 16", "heads 1..16, four XL blocks, batch 16", staircase("heads", 16), 30),
        Line("tokens 16", "tokens k/16, four XL blocks, batch 16", staircase("tokens", 16), 30),
        Line("heads 2", "heads 1..16, four XL blocks, batch 2", staircase("heads", 2), 30),
        Line("tokens 2", "tokens k/16, four XL blocks, batch 2", staircase("tokens", 2), 30),
        Line("run 250", "250 guided steps of 8 images", guided(250, 8), 60),
    ]
