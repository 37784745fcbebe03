"""The call facts: what attention, graphs and row passes cost on this card, outside of any engine. Decides what is worth an own kernel."""

import ctypes
import json
import time

import setup_path  # noqa: F401  (benchmarks/rivals)
from laps import Clock
from protocol import Failed, Line, Skip, last_error

HIDDEN, HEADS = 1152, 16
ROWS = (16, 2, 64)
NODES = 200


def clock_of(context):
    return Clock(context.torch, context.device, warm_up=.2, lap=.02)


# --- attention -----------------------------------------------------------------------------------------------------


def views(torch, device, B, N, n, D):
    """q, k, v (B, n, N, D) as the product of a block leaves them: strided views of (B, N, n, 3, D)."""
    qkv = torch.randn(B, N, n, 3, D, dtype=torch.bfloat16, device=device)
    return [part.transpose(1, 2) for part in qkv.unbind(3)]


def attention_line(B, N, n, D):
    def run(context):
        torch, clock = context.torch, clock_of(context)
        rows, tokens = (2, 64) if context.dry else (B, N)
        q, k, v = views(torch, context.device, rows, tokens, n, D)
        from dit_cuda import cudnn, flash
        ways = {"sdpa of the CPU": torch.nn.functional.scaled_dot_product_attention} if context.dry else {"flash": flash, "cudnn": cudnn}
        numbers = {}
        for name, attend in ways.items():
            try:
                out = attend(q, k, v)
                ms = clock.time(lambda: attend(q, k, v))[0]
            except RuntimeError as error:  # a way that this size has not
                context.note(f"{name}: {str(error).splitlines()[0][:200]}")
                continue
            rate = 4 * rows * n * tokens**2 * D / ms / 1e9
            whole = attend(*(part[:1] for part in (q, k, v)))
            is_view = out.transpose(1, 2).reshape(rows, tokens, n * D).data_ptr() == out.data_ptr()
            numbers[name] = {"ms": ms, "tflops": rate, "first_sample_equal_alone": torch.equal(whole, out[:1]), "heads_joined_without_copy": is_view}
            context.value(name, rate, "TFLOP/s", context.table["facts"]["attention library TFLOP/s"] if (rows, tokens, n, D) == (16, 256, 16, 72) else None)
            if not numbers[name]["first_sample_equal_alone"]:
                context.note(f"{name}: a sample's bits depend on the batch")
            if not is_view:
                context.note(f"{name}: heads are joined by a copy")
        if not numbers:
            raise Skip("no attention runs at this size")
        return numbers
    return run


# --- graphs --------------------------------------------------------------------------------------------------------


def nodes(context):
    """The time between two kernels of a graph that do next to nothing."""
    context.need_card()
    torch, clock = context.torch, clock_of(context)
    x = torch.zeros(1, device=context.device)

    def work():
        for _ in range(NODES):
            x.add_(1)

    replay = clock.capture(work)
    graph_us, plain_us = (clock.time(way)[0] * 1e3 / NODES for way in (replay, work))
    context.value("graph", graph_us, "us a node", context.table["facts"]["us between graph nodes"])
    context.value("launches", plain_us, "us a kernel")
    return {"nodes": NODES, "graph_us": graph_us, "launch_us": plain_us}


def probed(context, what, without):
    """What the program `probe`, with kernels of our own, says of `what`; skipped, and why, where it is not beside the program."""
    context.need_card()
    if not context.program.beside("probe"):
        raise Skip(f"no probe beside the program: {without}")
    done = context.program.run_beside("probe", what, timeout=context.timeout(60))
    if done.returncode:
        raise Failed(last_error(done.stderr))
    return json.loads(done.stdout)


def nodes_with_pdl(context):
    said = probed(context, "--pdl", "programmatic dependent launch wants a kernel of our own")
    context.value("graph with programmatic dependent launch", said["us_a_node"], "us a node", context.table["facts"]["us between graph nodes with PDL"])
    return said


def step_graphs(context):
    """The sliced DyDiT at batch 2 as one graph and as a graph a block; what a replay and instantiating cost the host."""
    context.need_card()
    torch, clock = context.torch, clock_of(context)
    from dit_cuda import make_inputs, make_model, slice_model
    model = make_model("XL/2", context.device, torch.bfloat16, "flash", dynamic=True)
    slice_model(model, 9 / 16, 9 / 16, 200 / 256)
    inputs = make_inputs(model.config, 2, context.device, torch.bfloat16)
    tokens = torch.randn(2, model.config.num_tokens, HIDDEN, dtype=torch.bfloat16, device=context.device)
    vector = torch.randn(2, HIDDEN, dtype=torch.bfloat16, device=context.device)

    def no_grad(work):
        def run():
            with torch.no_grad():
                return work()
        return run

    whole = clock.capture(no_grad(lambda: model(*inputs)))
    blocks = [clock.capture(no_grad(lambda block=block: block(tokens, vector, vector))) for block in model.blocks]

    def all_blocks():
        for replay in blocks:
            replay()

    one, many = clock.time(whole)[0], clock.time(all_blocks)[0]
    context.value("one graph", one, "ms")
    context.value("a graph a block", many, "ms")
    context.value("host, a replay", host_us(clock, whole), "us", context.table["facts"]["us of a replay"])
    context.value("host, replays of blocks", host_us(clock, all_blocks) / len(blocks), "us")
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph, stream=clock.stream, capture_error_mode="thread_local"):
        no_grad(lambda: model(*inputs))()
    began = time.perf_counter()
    graph.instantiate()
    took = (time.perf_counter() - began) * 1e3
    context.value("instantiating a step", took, "ms", context.table["facts"]["ms of instantiating a step"])
    return {"one_ms": one, "blocks_ms": many, "between_block_graphs_us": (many - one) * 1e3 / len(blocks)}


def host_us(clock, work, calls=50):
    """Microseconds until a call comes back, the card far behind: few enough calls that no queue is full."""
    clock.wait()

    def run():
        began = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - began) * 1e6 / calls

    result = clock.on_stream(run)
    clock.wait()
    return result


# --- row passes and the L2 -----------------------------------------------------------------------------------------


def row_pass(torch, B, N, C, device):
    """LayerNorm and modulation of x (B, N, C) into bfloat16 by ATen, and residual plus gated update; bytes that both must move."""
    with torch.device(device):
        x, out = torch.randn(B, N, C), torch.empty(B, N, C, dtype=torch.bfloat16)
        shift, scale, gate = (torch.randn(B, 1, C) for _ in range(3))
        y = torch.randn(B, N, C, dtype=torch.bfloat16)

    def work():
        with torch.inference_mode():
            torch.addcmul(shift, torch.native_layer_norm(x, [C], None, None, 1e-6)[0], scale, out=out)
            x.addcmul_(gate, y)

    with torch.inference_mode():  # tensors made outside may be written, out= wants the type
        try:
            work()
        except RuntimeError:  # float32 into bfloat16 is not this ATen's
            return None
    return work, x, B * N * C * (4 + 2 + 4 + 4 + 2)


def row_passes(context):
    torch, clock = context.torch, clock_of(context)
    copy = (context.results.rows.get("copy") or {}).get("numbers", {}).get("copy_tbps") or context.of_card(context.table["copy_tbps"])
    for B in (2,) if context.dry else (2, 16, 64):
        found = row_pass(torch, B, 64 if context.dry else 256, 96 if context.dry else HIDDEN, context.device)
        if not found:
            raise Skip("addcmul does not write bfloat16 from float32 here")
        work, _, moved = found
        rate = moved / clock.time(work)[0] / 1e9
        context.value(f"batch {B}: of the copy bandwidth", rate / copy, "", context.table["facts"]["ATen row passes of the copy bandwidth"] if B >= 16 else None)


def own_row_passes(context):
    said = probed(context, "--rows", "this build has no row kernels of its own")
    context.value("of the copy bandwidth", said["copy_share"], "", context.table["facts"]["own row passes of the copy bandwidth"])
    return said


def copy(context):
    torch, clock, count = context.torch, clock_of(context), (1 << 20) if context.dry else 1 << 32
    source = torch.empty(count, dtype=torch.uint8, device=context.device).random_()
    target = torch.empty_like(source)
    rate = 2 * count / clock.time(lambda: target.copy_(source))[0] / 1e9
    context.value("copy", rate, "TB/s", context.of_card(context.table["copy_tbps"]))
    return {"copy_tbps": rate}


class Window(ctypes.Structure):
    """cudaAccessPolicyWindow, in the 64 bytes of a stream's attribute."""
    _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t), ("hit_ratio", ctypes.c_float), ("hit", ctypes.c_int), ("miss", ctypes.c_int),
                ("pad", ctypes.c_char * 32)]


LIMIT_PERSISTING_L2, ATTRIBUTE_WINDOW, PERSISTING, STREAMING = 6, 1, 2, 1


def persisting_l2(context):
    """Row passes with the residual stream as a persisting window of the L2: a limit of this process, gone with it; no setting of the card."""
    context.need_card()
    torch, clock = context.torch, clock_of(context)
    work, x, _ = row_pass(torch, 16, 256, HIDDEN, context.device)
    before = clock.time(work)[0]
    runtime, size = ctypes.CDLL("libcudart.so.13"), x.numel() * x.element_size()
    window = Window(x.data_ptr(), size, 1.0, PERSISTING, STREAMING)
    for status in (runtime.cudaDeviceSetLimit(LIMIT_PERSISTING_L2, ctypes.c_size_t(size)),
                   runtime.cudaStreamSetAttribute(ctypes.c_void_p(clock.stream.cuda_stream), ATTRIBUTE_WINDOW, ctypes.byref(window))):
        if status:
            raise Skip(f"the runtime gives no persisting window: status {status}")
    after = clock.time(work)[0]
    runtime.cudaCtxResetPersistingL2Cache()
    runtime.cudaDeviceSetLimit(LIMIT_PERSISTING_L2, ctypes.c_size_t(0))
    context.value("time with the window over without", after / before, "x", .7)
    return {"before_ms": before, "after_ms": after}


def lines(context):
    sizes = [(B, 256, n, 72) for B in ROWS for n in (HEADS, 9)] + [(2, 1024, HEADS, 72), (16, 1024, HEADS, 72), (64, 256, 6, 64), (16, 256, 6, 64)]
    attention = [Line(f"attention {B} {n} {N} {D}", f"{B} rows, {n} heads, {N} tokens, {D} wide: useful TFLOP/s, bits, joined heads",
                      attention_line(B, N, n, D), 2) for B, N, n, D in sizes]
    return [Line("copy", "copy of 8 GB, read and written", copy, 4),
            *attention[:4],
            Line("nodes", f"{NODES} kernels that do next to nothing, in a graph and launched", nodes, 3),
            Line("step graphs", "whole-step and block graphs, instantiating", step_graphs, 12),
            Line("row passes", "LayerNorm, modulation and residual by ATen", row_passes, 5),
            Line("own row passes", "the same by kernels of our own", own_row_passes, 3),
            *attention[4:],
            Line("persisting L2", "the residual stream in a persisting window", persisting_l2, 3),
            Line("nodes with PDL", "the same kernels with programmatic dependent launch", nodes_with_pdl, 3)]
