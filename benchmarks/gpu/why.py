"""The call why: where the time of the slowest kernels goes, by the hardware's counters, and the headline rows once more at the end."""

import csv
import io
import json
import shutil

from own import SHARES, bench, engine, model, share_flags
from protocol import Failed, Line, Skip, last_error

METRICS = {"tensor pipe": "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active", "DRAM bytes": "dram__bytes.sum",
           "L2 bytes": "lts__t_bytes.sum", "us": "gpu__time_duration.sum"}
KERNELS = 5


def counters(batch):
    """ncu without clock control, so that no clock is set; one forward after the warm-up, the five kernels that take the longest."""
    def run(context):
        context.need_card()
        ncu = shutil.which("ncu") or shutil.which("/usr/local/cuda/bin/ncu")
        if not ncu:
            raise Skip("no ncu on the PATH")
        prefix = [ncu, "--clock-control", "none", "--csv", "--page", "raw", "--metrics", ",".join(METRICS.values()), "--launch-skip", 2000,
                  "--launch-count", 600]
        done = context.run("bench", *model(context, "DiT-XL/2"), "--batch", batch, "--steps", 2, "--repeats", 1, "--graphs", "off",
                           *share_flags(SHARES[".49"]), *engine(context), "-q", prefix=prefix, most=150)
        kernels = by_kernel(done.stdout)
        if not kernels:
            raise Failed(f"ncu told of no kernel: {last_error(done.stderr) or last_error(done.stdout)}")
        slowest = sorted(kernels.items(), key=lambda item: -item[1]["us"])[:KERNELS]
        for name, numbers in slowest:
            context.value(f"{name[:60]}: tensor pipe", numbers.get("tensor pipe"), "%")
        return {"kernels": dict(slowest), "of": len(kernels)}
    return run


def by_kernel(text):
    """{kernel: sums over its launches; of the pipe the mean} of ncu's raw page in CSV, whose second line holds units."""
    lines = text.splitlines()
    first = next((index for index, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        return {}
    rows = list(csv.DictReader(io.StringIO("\n".join(lines[first:]))))
    units, kernels = rows[0] if rows else {}, {}
    for row in rows[1:]:
        if not (row["ID"] or "").isdigit() or not row.get("Kernel Name"):  # what the program printed after it
            continue
        kernel = kernels.setdefault(row["Kernel Name"], {"launches": 0})
        kernel["launches"] += 1
        for name, metric in METRICS.items():
            if row.get(metric):
                kernel[name] = kernel.get(name, 0) + float(row[metric].replace(",", "")) * factor(units.get(metric, ""))
    for kernel in kernels.values():
        kernel.setdefault("us", 0)
        if "tensor pipe" in kernel:
            kernel["tensor pipe"] /= kernel["launches"]
    return kernels


def factor(unit):
    return {"ns": 1e-3, "us": 1, "ms": 1e3, "s": 1e6, "nsecond": 1e-3, "usecond": 1, "msecond": 1e3, "second": 1e6, "Kbyte": 1e3, "Mbyte": 1e6,
            "Gbyte": 1e9}.get(unit, 1)


def once_more(batch):
    """The same line of the call ours, minutes later: how far the card drifted."""
    def run(context):
        numbers = bench("XL/2", batch, case=f"XL/2 batch {batch}")(context)
        before = context.out / "ours.json"
        rows = {row["name"]: row for row in json.loads(before.read_text())["rows"]} if before.exists() else {}
        old = ((rows.get(f"XL/2 {batch} .49") or {}).get("numbers") or {}).get("dynamic")
        if old:
            context.value("over the first time", numbers["dynamic"]["ms_per_sample"] / old["ms_per_sample"], "x", 1)
        return numbers
    return run


def lines(context):
    return [Line("counters 16", f"ncu, batch 16: the {KERNELS} slowest kernels", counters(16), 75),
            Line("counters 2", f"ncu, batch 2: the {KERNELS} slowest kernels", counters(2), 75),
            *[Line(f"XL/2 {batch} .49 again", f"DiT-XL/2, batch {batch}, at the end", once_more(batch), 14) for batch in (16, 2, 64)]]
