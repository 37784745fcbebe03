"""Forwards of a (Dy)DiT, whose network is a SiT's, too, or of a U-ViT by one rival: a worker of compare_inference.py that runs a lap for every line it reads.

    infer_torch.py --rival eager|compile|openvino|masked --size DiT-XL/2 --batch 2 --threads 2

Rivals: PyTorch eager; torch.compile (inductor, frozen weights); OpenVINO on the exported module; and the masked DyDiT,
every part computed and multiplied by masks. --dtype: OpenVINO by its precision hint, from float32 weights, which is how it
is meant to be used, int8 by NNCF (weights and activations); PyTorch with weights and activations converted, or with --autocast from
float32 weights, as they are in the authors' code. Answers "ready VERSION" once warm, then one line of
milliseconds per sample a lap. A lap is one forward to warm up again and --steps that are timed.
"""

import argparse
import concurrent.futures
import os
import pathlib
import sys
import tempfile
import time

DITS = {"XL/2": (1152, 28, 16), "L/2": (1024, 24, 16), "B/2": (768, 12, 12), "S/2": (384, 12, 6)}
SIZES = [f"{family}-{size}" for family in ("DiT", "SiT") for size in DITS] + ["U-ViT-S/2", "U-ViT-M/2", "U-ViT-L/2"]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rival", choices=("eager", "compile", "openvino", "masked"), required=True)
    parser.add_argument("--size", choices=SIZES, default="DiT-XL/2")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--streams", type=int, default=1, help="of OpenVINO")
    parser.add_argument("--channels-last", action="store_true", help="of the patch embedding")
    parser.add_argument("--no-fused-attention", dest="fused", action="store_false",
                        help="matmul, softmax, matmul instead of scaled_dot_product_attention")
    parser.add_argument("--dtype", choices=("f32", "bf16", "f16", "int8"), default="bf16", help="f16, int8: of OpenVINO")
    parser.add_argument("--autocast", action="store_true", help="float32 weights, converted at every use")
    parser.add_argument("--give-up-above", type=float, default=float("inf"), metavar="MS",
                        help="a sample: end where the second forward takes longer")
    return parser.parse_args()


def make_module(args):
    import torch
    from dit_torch import Config, DiT
    torch.manual_seed(0)
    if args.size.startswith("U-ViT"):
        from uvit_torch import UViT
        if args.rival == "masked" or not args.fused:
            raise SystemExit(f"{args.size}: no such rival")
        return UViT(args.size).eval().requires_grad_(False)
    hidden, depth, heads = DITS[args.size.split("-")[1]]
    model = DiT(Config(hidden_size=hidden, depth=depth, num_heads=heads, dynamic=args.rival == "masked",
                       fused_attention=args.fused)).eval().requires_grad_(False)
    return model


def make_inputs(args):
    import torch
    x = torch.randn(args.batch, 4, 32, 32)
    t = torch.full((args.batch,), 0.5 if args.size.startswith("U-ViT") else 500)
    y = torch.tensor([i if i < (args.batch + 1) // 2 else 1000 for i in range(args.batch)])
    return x, t, y


def torch_forward(args):
    import torch
    from dit_torch import Gates
    torch.set_num_threads(args.threads)
    model, (x, t, y) = make_module(args), make_inputs(args)
    if args.dtype not in ("f32", "bf16"):
        raise SystemExit(f"--dtype {args.dtype}: PyTorch has no such thing here")
    if not args.autocast and args.dtype == "bf16":
        model, x = model.bfloat16(), x.bfloat16()
    if args.channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if args.rival == "compile":
        import torch._inductor.config
        torch._inductor.config.freezing = True
        model = torch.compile(model)

    def forward():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=args.autocast):
            return model(x, t, y, Gates(model.config)) if args.rival == "masked" else model(x, t, y)

    return forward, f"torch {torch.__version__}"


def export_openvino(args, inputs, path):
    import openvino as ov
    model = ov.convert_model(make_module(args), example_input=inputs)
    if args.dtype == "int8":
        import nncf
        data = nncf.Dataset([[value.numpy() for value in inputs]] * 4)
        model = nncf.quantize(model, data, subset_size=4, model_type=nncf.ModelType.TRANSFORMER)
    ov.save_model(model, path, compress_to_fp16=False)


def openvino_forward(args):
    """With --streams, each has its part of the batch and of the threads, and they run side by side."""
    import openvino as ov
    version = f"openvino {ov.__version__.split('-')[0]}"
    inputs = make_inputs(args)
    parts = list(zip(*(value.chunk(args.streams) for value in inputs)))
    hint = {"int8": "f32"}.get(args.dtype, args.dtype)  # of what NNCF leaves as it is
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": args.threads}
    settings |= {"NUM_STREAMS": args.streams} if args.streams > 1 else {"PERFORMANCE_HINT": "LATENCY"}
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ProcessPoolExecutor(1) as converter:
        path = pathlib.Path(folder, "dit.xml")  # a process of its own: conversion leaves 5 GB behind
        converter.submit(export_openvino, args, parts[0], path).result()
        compiled = ov.compile_model(path, "CPU", settings)
    parts = [[value.numpy() for value in part] for part in parts]
    if args.streams == 1:
        request = compiled.create_infer_request()
        return lambda: request.infer(parts[0]), version
    queue = ov.AsyncInferQueue(compiled, args.streams)

    def forward():
        for part in parts:
            queue.start_async(part)
        queue.wait_all()

    return forward, version


def main():
    args = parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries talk to stdout
    forward, version = openvino_forward(args) if args.rival == "openvino" else torch_forward(args)
    forward()
    start = time.perf_counter()
    forward()
    if (time.perf_counter() - start) * 1e3 / args.batch > args.give_up_above:
        raise SystemExit(f"slower than {args.give_up_above} ms a sample")
    forward()
    print("ready", version, file=answers, flush=True)
    for _ in sys.stdin:
        forward()  # the others had the memory and the caches meanwhile
        start = time.perf_counter()
        for _ in range(args.steps):
            forward()
        print((time.perf_counter() - start) * 1e3 / (args.steps * args.batch), file=answers, flush=True)


if __name__ == "__main__":
    main()
