"""The call products: what the two ceilings of this card are, and how near cuBLASLt's products of the layers come to them when no kernel may
split K, which is what makes a row's bits independent of the batch. M rows, K inputs, N outputs; C hidden size, H heads.

A product is timed over sets of other weights and inputs in turns, as a forward's blocks have their own: one set would lie in the L2 cache.
"""

import json
import os
import subprocess
import sys

import setup_path  # noqa: F401  (benchmarks/rivals)
from laps import Clock
from protocol import HERE, Failed, Line

XL = (1152, 16)
TINY = (96, 3)
ROWS = (4096, 512, 16384, 1600)  # of batch 16, 2, 64, and of tokens that were kept
INVARIANT_ROWS = (256, 1000, 4096)
SETS = 8
# Read by cuBLAS once, so a process of its own.
SMALL_WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "CUBLASLT_WORKSPACE_SIZE": "1"}


def layers(C, H, on):
    """{layer: (K, N)} with `on` heads and groups of H."""
    part = C * on // H
    return {"qkv": (C, 3 * part), "proj": (part, C), "fc1": (C, 4 * part), "fc2": (4 * part, C)}


def forbid_split_k(torch, forbid):
    """cuBLASLt for all products; the classic path knows no such promise."""
    if torch.cuda.is_available():
        torch.backends.cuda.preferred_blas_library("cublaslt")
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (not forbid, not forbid)


def operands(torch, device, M, K, N, sets, rotate=True):
    with torch.device(device):
        return [(torch.randn(M, K, dtype=torch.bfloat16), torch.randn(N, K, dtype=torch.bfloat16) / K**.5, torch.randn(N, dtype=torch.bfloat16))
                for _ in range(sets if rotate else 1)]


def turning(torch, sets, product):
    """A function that multiplies the next set at every call."""
    turn = 0

    def work():
        nonlocal turn
        turn = (turn + 1) % len(sets)
        with torch.inference_mode():
            product(*sets[turn])

    return work


def plain(torch):
    return lambda a, w, b: torch.addmm(b, a, w.t())


def layer_times(torch, clock, M, on, C, H, forbid, laps=5):
    """{layer: milliseconds of addmm with its bias}, fc1 with GELU in the product."""
    forbid_split_k(torch, forbid)
    times = {}
    for layer, (K, N) in layers(C, H, on).items():
        gelu = layer == "fc1"
        product = (lambda a, w, b: torch._addmm_activation(b, a, w.t(), use_gelu=True)) if gelu else plain(torch)
        times[layer] = clock.time(turning(torch, operands(torch, clock.device, M, K, N, SETS), product), laps)[0]
    return times


def layer_work(M, on, C, H):
    """Multiply-adds of each layer."""
    return {layer: M * K * N for layer, (K, N) in layers(C, H, on).items()}


def unequal_layers(torch, device, C, H, on, rows=INVARIANT_ROWS):
    """Layers whose first rows have other bits when there are more rows. Fresh random inputs."""
    unequal = []
    for layer, (K, N) in layers(C, H, on).items():
        a, w, b = operands(torch, device, max(rows), K, N, 1)[0]
        with torch.inference_mode():
            outputs = [torch.addmm(b, a[:M], w.t())[:min(rows)] for M in rows]
        if not all(torch.equal(outputs[0], other) for other in outputs[1:]):
            unequal.append(layer)
    return unequal


# --- lines ---------------------------------------------------------------------------------------------------------


def shape(context):
    return TINY if context.dry else XL


def clock_of(context):
    return Clock(context.torch, context.device, warm_up=.2, lap=.02)


def ceilings(context):
    """Bytes read and written of a large copy, and a large product for half a second, of random data."""
    torch, device = context.torch, context.device
    clock, side, count = Clock(torch, device, warm_up=.3, lap=.1), 256 if context.dry else 8192, (1 << 20) if context.dry else 1 << 32
    with torch.device(device):
        source = torch.empty(count, dtype=torch.uint8).random_()
        target = torch.empty_like(source)
        a, b = (torch.randn(side, side, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    copy = 2 * count / clock.time(lambda: target.copy_(source))[0] / 1e9
    forbid_split_k(torch, False)
    product = 2 * side**3 / clock.time(lambda: torch.mm(a, b, out=out))[0] / 1e9
    context.value("copy", copy, "TB/s", context.of_card(context.table["copy_tbps"]))
    context.value(f"product of {side}", product, "TFLOP/s", context.of_card(context.table["peak_tflops"]))
    return {"copy_tbps": copy, "peak_tflops": product}


def peak(context):
    """Measured in this call, else what was predicted."""
    row = context.results.rows.get("ceilings", {})
    return (row.get("numbers") or {}).get("peak_tflops") or context.of_card(context.table["peak_tflops"])


def layer_line(M, full):
    def run(context):
        C, H = shape(context)
        rows = max(8, M // 64) if context.dry else M
        on = H if full else round(H * 9 / 16)
        clock, settings = clock_of(context), {}
        settings["default"] = layer_times(context.torch, clock, rows, on, C, H, False)
        settings["no split-K"] = layer_times(context.torch, clock, rows, on, C, H, True)
        work = sum(layer_work(rows, on, C, H).values())
        predicted = context.table["facts"]["library product of the peak"]
        for name, times in settings.items():
            share = 2 * work / sum(times.values()) / 1e9 / peak(context)
            context.value(f"{name}: of the peak", share, "", predicted if name == "default" and M >= 4096 else None)
        ratio = sum(settings["default"].values()) / sum(settings["no split-K"].values())
        context.value("split-K forbidden over default", ratio, "x", context.table["facts"]["split-K forbidden over default at M 4096"] if M == 4096 else None)
        return {"milliseconds": settings, "multiply_adds": layer_work(rows, on, C, H), "M": rows, "on": on}
    return run


def small_workspace(context):
    """The same times by a process in whose environment cuBLAS may use next to no workspace."""
    C, H = shape(context)
    shapes = [(max(8, M // 64) if context.dry else M, on) for M in ROWS[:2] for on in (H, round(H * 9 / 16))]
    done = subprocess.run([sys.executable, HERE / "products.py", context.device, str(C), str(H), *(f"{M}:{on}" for M, on in shapes)],
                          capture_output=True, text=True, timeout=context.timeout(90), env={**os.environ, **SMALL_WORKSPACE})
    if done.returncode:
        raise Failed(f"products.py: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f'exit {done.returncode}'}")
    times = json.loads(done.stdout)
    for (M, on), of_layers in zip(shapes, times, strict=True):
        share = 2 * sum(layer_work(M, on, C, H).values()) / sum(of_layers.values()) / 1e9 / peak(context)
        context.value(f"M {M}, {on} of {H}: of the peak", share, "")
    return {"milliseconds": times}


def invariance(context):
    """Default, and with split-K forbidden."""
    C, H = shape(context)
    rows, counts = (4, 20, 64) if context.dry else INVARIANT_ROWS, {}
    for name, forbid in (("default", False), ("no split-K", True)):
        forbid_split_k(context.torch, forbid)
        unequal = [f"{layer} {on}/{H}" for on in (H, round(H * 9 / 16)) for layer in unequal_layers(context.torch, context.device, C, H, on, rows)]
        counts[name] = unequal
        context.value(f"{name}: layers whose bits change with M", len(unequal), "of 8", 0 if forbid and not context.dry else None, "equal")
    if counts["no split-K"] and not context.dry:
        raise Failed(f"split-K is forbidden and bits change with M: {', '.join(counts['no split-K'])}; images would depend on the batch")
    return counts


def gelu(context):
    """fc1 with bias and GELU in the product, and as a product and a kernel."""
    torch, (C, _) = context.torch, shape(context)
    clock, rows = clock_of(context), 64 if context.dry else 4096
    forbid_split_k(torch, True)
    sets = operands(torch, context.device, rows, C, 4 * C, SETS)
    fused = clock.time(turning(torch, sets, lambda a, w, b: torch._addmm_activation(b, a, w.t(), use_gelu=True)))[0]
    separate = clock.time(turning(torch, sets, lambda a, w, b: torch.nn.functional.gelu(torch.addmm(b, a, w.t()), approximate="tanh")))[0]
    context.value("fused over separate", separate / fused, "x", context.table["facts"]["fused GELU over separate"], "floor")
    a, w, b = sets[0]
    with torch.inference_mode():
        wanted = torch.nn.functional.gelu((a.double() @ w.double().t() + b.double()), approximate="tanh")
        off = ((torch._addmm_activation(b, a, w.t(), use_gelu=True) - wanted).norm() / wanted.norm()).item()
    context.value("relative error of fused", off, "", 5e-3, "limit")
    if context.dry:
        context.note("on the CPU the fused operator has GELU's erf form")
    return {"fused_ms": fused, "separate_ms": separate}


def grouped(context):
    """M on the device: torch._grouped_mm of one group against addmm; it has no bias and allocates."""
    torch, (C, _) = context.torch, shape(context)
    clock, rows = clock_of(context), 64 if context.dry else 4096
    (a, w, b), = operands(torch, context.device, rows, C, 4 * C, 1)
    offsets = torch.tensor([rows * 3 // 4], dtype=torch.int32, device=context.device)
    weights = w[None].transpose(1, 2)
    with torch.inference_mode():
        grouped_ms = clock.time(lambda: torch._grouped_mm(a, weights, offs=offsets))[0]
        plain_ms = clock.time(lambda: torch.mm(a[:rows * 3 // 4], w.t()))[0]
    context.value("product over grouped product", plain_ms / grouped_ms, "x")
    return {"grouped_ms": grouped_ms, "product_ms": plain_ms}


def sixteen_algorithms(M):
    """The fastest of cuBLASLt's first 16 proposals that do not split K, layer by layer, against its first."""
    def run(context):
        context.need_card()
        from cublaslt import best_of
        C, H = shape(context)
        numbers = {}
        for layer, (K, N) in layers(C, H, H).items():
            a, w, _ = operands(context.torch, context.device, M, K, N, 1)[0]
            numbers[layer] = best_of(context.torch, clock_of(context), a, w, 16)
        first, best = (sum(times[key] for times in numbers.values()) for key in ("first_ms", "best_ms"))
        context.value("best of 16 over the first", first / best, "x")
        return numbers
    return run


def lines(context):
    shapes = [Line(f"layers M {M} {'all' if full else '9 of 16'}", f"qkv, proj, fc1, fc2 at M {M}, {'all' if full else '9 of 16'} heads and groups: "
                   "default, split-K forbidden", layer_line(M, full), 9) for M in ROWS for full in (True, False)]
    return [Line("ceilings", "copy of 8 GB (read and written), bf16 product of 8192", ceilings, 4),
            Line("invariance", "rows 0..255 of M 256, 1000, 4096: bits", invariance, 3),
            *shapes[:4],
            Line("small workspace", "no split-K and next to no workspace, at M 4096 and 512", small_workspace, 15),
            Line("gelu", "fc1 at M 4096: bias and GELU in the product", gelu, 3),
            Line("grouped", "product with M on the device, three quarters of 4096 rows", grouped, 3),
            *shapes[4:],
            *[Line(f"16 algorithms M {M}", f"cuBLASLt's first 16 proposals without split-K at M {M}", sixteen_algorithms(M), 8) for M in ROWS[:2]],
            Line("ceilings again", "both ceilings at the end", ceilings, 4)]


def main(device, C, H, *shapes):
    """Prints layer_times of every shape as JSON, for environments that cuBLAS reads once: products.py DEVICE C H M:ON..."""
    import torch
    torch.set_num_threads(1)
    clock = Clock(torch, device, warm_up=.2, lap=.02)
    pairs = [map(int, shape.split(":")) for shape in shapes]
    print(json.dumps([layer_times(torch, clock, M, on, int(C), int(H), True) for M, on in pairs]))


if __name__ == "__main__":
    main(*sys.argv[1:])
