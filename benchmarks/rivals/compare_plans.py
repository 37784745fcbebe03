"""Times sampling steps under a cache policy: dydit against the same policy written in plain PyTorch.

    benchmarks/rivals/setup
    build/rivals/bin/python benchmarks/rivals/compare_plans.py [--case S --cache taylor:3,2 --rounds 5]

Both go through the same steps, some of which compute all branches and keep what these added, un-gated, with differences
to the last order (TaylorSeer's ladder), the others of which forecast them; one type of number, random weights of the same shapes,
the same number of threads, no guidance. PyTorch competes eager and with torch.compile, whichever is faster at each kind
of step, attention fused or written out. A round is one run of each; medians of all rounds are compared.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES = {"XL": ("XL/2", 2), "S": ("S/2", 16)}
TORCH_DTYPES = {"bf16": "bfloat16", "f32": "float32"}
SIZES = {"XL/2": (1152, 28, 16), "S/2": (384, 12, 6)}


def full_steps(steps, every):
    """TaylorSeer's: the first two steps and every `every`-th after the second."""
    return [step == 0 or (step - 1) % every == 0 for step in range(steps)]


def make_step_functions(size, order, fused, dtype):
    """(full, cached): functions of (x, t, y, ladders, distance) that return the output and the new ladders."""
    import torch
    from dit_torch import Config, DiT, modulate
    hidden, depth, heads = SIZES[size]
    torch.manual_seed(0)
    model = DiT(Config(hidden_size=hidden, depth=depth, num_heads=heads, fused_attention=fused)).eval()
    model = model.requires_grad_(False).to(getattr(torch, TORCH_DTYPES[dtype]))

    def rise(feature, ladder, distance):
        """The feature and its differences, as far as the last ladder allows."""
        new = [feature]
        for i in range(min(order, len(ladder))):
            new.append((new[i] - ladder[i]) / -distance)
        return new

    def reach(ladder, distance):
        value, factor = ladder[0], 1.0
        for i, difference in enumerate(ladder[1:], start=1):
            factor *= -distance / i
            value = value + difference * factor
        return value

    def frame(run_blocks):
        def step(x, t, y, ladders, distance):
            c = model.t_embedder(t) + model.y_embedder(y)
            h, ladders = run_blocks(model.x_embedder(x) + model.pos_embed, c, ladders, distance)
            return model.unpatchify(model.final_layer(h, c)), ladders
        return step

    def full(h, c, ladders, distance):
        new = []
        for index, block in enumerate(model.blocks):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaLN_modulation(c).chunk(6, dim=1)
            a = block.attn(modulate(block.norm1(h), shift_a, scale_a))
            h = h + gate_a[:, None] * a
            m = block.mlp(modulate(block.norm2(h), shift_m, scale_m))
            h = h + gate_m[:, None] * m
            before = ladders[index] if ladders else ([], [])
            new.append((rise(a, before[0], distance), rise(m, before[1], distance)))
        return h, new

    def cached(h, c, ladders, distance):
        for block, (attention, mlp) in zip(model.blocks, ladders):
            gates = block.adaLN_modulation(c).chunk(6, dim=1)
            h = h + gates[2][:, None] * reach(attention, distance)
            h = h + gates[5][:, None] * reach(mlp, distance)
        return h, ladders

    return frame(full), frame(cached)


def torch_run(functions, batch, args, steps):
    """Seconds of every step of a run."""
    import torch
    full, cached = functions
    x = torch.randn(batch, 4, 32, 32).to(getattr(torch, TORCH_DTYPES[args.dtype]))
    y = torch.arange(batch)
    ladders, last, seconds = None, 0, []
    for step, whole in enumerate(full_steps(steps, args.every)):
        t = torch.full((batch,), 999 - 20 * step)
        start = time.perf_counter()
        with torch.no_grad():
            _, ladders = (full if whole else cached)(x, t, y, ladders, float(step - last))
        seconds.append(time.perf_counter() - start)
        last = step if whole else last
    return seconds


def torch_variants(size, batch, args):
    """Name -> functions that are warm."""
    import torch
    import torch._inductor.config
    torch.set_num_threads(args.threads)
    torch._inductor.config.freezing = True
    variants = {}
    for fused, compiled in itertools.product((True, False), (False, True)):
        functions = make_step_functions(size, args.order, fused, args.dtype)
        if compiled:
            functions = tuple(torch.compile(function, dynamic=False) for function in functions)
        name = f"{'compile' if compiled else 'eager'}, {'fused' if fused else 'matmul'} attention"
        try:
            torch_run(functions, batch, args, 4 * args.every)
        except Exception as error:  # a compiler that is not there: the others compete
            print(f"{name}: left out: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        variants[name] = functions
    return variants


def bench_dydit(size, batch, args):
    out = subprocess.run([args.dydit, "bench", f"--size=DiT-{size}", f"--batch={batch}", f"--threads={args.threads}",
                          f"--dtype={args.dtype}", f"--steps={args.steps}", "--repeats=1", "--json", "--quiet",
                          f"--cache=taylor:{args.every},{args.order}"], capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dydit", default=str(ROOT / "build/release/dydit"))
    parser.add_argument("--case", choices=CASES, default="S")
    parser.add_argument("--cache", default="taylor:3,2", help="taylor:N,O")
    parser.add_argument("--dtype", choices=TORCH_DTYPES, default="bf16", help="of all: take what is fastest on this processor")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    name, _, numbers = args.cache.partition(":")
    if name != "taylor" or numbers.count(",") != 1:
        parser.error("--cache: taylor:N,O is what is written in PyTorch here")
    args.every, args.order = map(int, numbers.split(","))
    return args


def main():
    args = parse_args()
    size, batch = CASES[args.case]
    variants = torch_variants(size, batch, args)
    runs, ours, plain, realised = {name: [] for name in variants}, [], [], []
    for turn in range(args.rounds):
        result = bench_dydit(size, batch, args)
        ours.append(result["static cached"]["ms_per_sample"])
        plain.append(result["static"]["ms_per_sample"])
        realised.append(result["static cached"]["realised_share"])
        for name, functions in variants.items():
            runs[name].append(torch_run(functions, batch, args, args.steps))
        print(f"round {turn + 1} of {args.rounds}", file=sys.stderr)
    kinds = full_steps(args.steps, args.every)
    to_ms = 1e3 / batch
    rows = []
    for name, all_seconds in runs.items():
        steps = [statistics.median(step) * to_ms for step in zip(*all_seconds)]
        whole = statistics.mean(ms for ms, full in zip(steps, kinds) if full)
        cached = statistics.mean(ms for ms, full in zip(steps, kinds) if not full)
        rows.append((name, statistics.mean(steps), whole, cached))
    best = min(whole for _, _, whole, _ in rows), min(cached for _, _, _, cached in rows)
    share = sum(kinds) / len(kinds)
    rows.append(("the faster at each kind of step", share * best[0] + (1 - share) * best[1], *best))
    mine = statistics.median(ours)
    print(f"\nDiT-{size}, batch {batch}, {args.threads} threads, {args.dtype}, {args.cache} over {args.steps} steps ({sum(kinds)} full), "
          f"{result['processor']}; medians of {args.rounds}, ms a sample and step\n")
    print("| program | mean | full step | cached step | over dydit |\n|---|---|---|---|---|")
    for name, mean, whole, cached in rows:
        print(f"| PyTorch, {name} | {mean:.2f} | {whole:.2f} | {cached:.2f} | {mean / mine:.2f}x |")
    print(f"| dydit, cached | {mine:.2f} | | | |\n| dydit, everything computed | {statistics.median(plain):.2f} | | | |")
    print(f"\nrealised share {statistics.median(realised):.3f}")


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    main()
