"""The call rivals: benchmarks/rivals/compare_cuda.py, dydit between the laps of PyTorch's programs. A row for each program, written again after every lap."""

import setup_path  # noqa: F401  (benchmarks/rivals)
from compare_cuda import CASES, NOT_COMPARED, case_name, compare
from protocol import Line, value_of

SECONDS = {("XL/2", 16): 170, ("XL/2", 2): 110, ("XL/2", 64): 120, ("S/2", 64): 70}


def best(rows, begins):
    """The median of the fastest program whose name begins so, and its name."""
    medians = {name: row["median"] for name, row in rows.items() if name.startswith(begins) and row.get("median")}
    name = min(medians, key=medians.get, default=None)
    return (medians[name], name) if name else (None, None)


def over(a, b):
    return a / b if a and b else None


def case_line(size, batch):
    def run(context):
        predicted = context.table["rivals"].get(case_name(size, batch))

        def on_row(name, row):
            values = [value_of("forward", row["median"], "ms") | {"low": row["low"], "high": row["high"]}] if row.get("median") else []
            context.results.put({"name": f"{case_name(size, batch)}: {name}", "what": name, "status": row["status"], "part_of": context.current,
                                 "values": values, **({"why": row["why"]} if "why" in row else {}), "numbers": row})

        rows = compare(context.torch, size, batch, dry=context.dry, seconds=min(SECONDS[size, batch], context.left - 5) if not context.dry else 60,
                       ask=lambda *arguments: context.ask(*arguments), on_row=on_row, say=context.note)
        compiled, name = best(rows, "static, torch.compile")
        static, dynamic = (rows.get(key, {}).get("median") for key in ("dydit, static", "dydit, .49"))
        sliced, sliced_name = best(rows, "sliced")
        context.value("best torch.compile", compiled, "ms", predicted)
        context.value("best sliced PyTorch", sliced, "ms")
        context.value("best eager", best(rows, "static, eager")[0], "ms")
        context.value("masked, as published", best(rows, "masked, as published")[0], "ms")
        context.value("dydit static over the best torch.compile", over(compiled, static), "x")
        context.value("dydit .49 over the best torch.compile", over(compiled, dynamic), "x")
        context.value("dydit .49 over the best sliced PyTorch", over(sliced, dynamic), "x")
        context.note(f"best: {name}; {sliced_name}")
        context.note(NOT_COMPARED)
        return {"programs": {name: {key: value for key, value in row.items() if key != "laps"} for name, row in rows.items()}}
    return run


def lines(context):
    return [Line(case_name(size, batch), f"{case_name(size, batch)}: PyTorch's programs in turns", case_line(size, batch), 60) for size, batch in CASES]
