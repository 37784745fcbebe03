"""A plain PyTorch training loop of a static DiT, as a user would write it: what dydit train is timed against.

    cd benchmarks/rivals
    ../../build/rivals/bin/python train_torch.py --hidden 256 --depth 8 --heads 8 --patch 4 --batch 64
    ../../build/rivals/bin/python train_torch.py --hidden 384 --depth 12 --heads 6 --patch 2 --channels 4 --batch 16

Per step: images from an array in memory, random flip, autocast to bfloat16, loss in float32, clip_grad_norm_, AdamW,
EMA parameter by parameter. Prints images/s, the median over the steps after the warm-up, and peak memory.
"""

import argparse
import json
import statistics
import time
from copy import deepcopy

import numpy as np
import torch

from dit_torch import NUM_TIMESTEPS, Config, Diffusion, DiT


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-path", help="npz of images (N, side, side, channels) uint8 and labels; default: random")
    for name, default in (("hidden", 256), ("depth", 8), ("heads", 8), ("patch", 4), ("side", 32), ("channels", 3),
                          ("classes", 10), ("batch", 64), ("steps", 20), ("warmup", 3), ("threads", 2), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=("bf16", "f32"), default="bf16")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--clip-grad", type=float, default=1.0)
    parser.add_argument("--ema-decay", type=float, default=0.9999)
    parser.add_argument("--label-dropout", type=float, default=0.1)
    parser.add_argument("--no-fused-attention", dest="fused", action="store_false",
                        help="matmul, softmax, matmul instead of scaled_dot_product_attention")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    return parser.parse_args()


def load_data(args):
    """(N, C, side, side) uint8, (N) labels."""
    if args.data_path:
        with np.load(args.data_path) as file:
            images, labels = file["images"], file["labels"]
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long()
    images = torch.randint(0, 256, (1024, args.channels, args.side, args.side), dtype=torch.uint8)
    return images, torch.randint(0, args.classes, (len(images),))


@torch.no_grad()
def update_ema(ema, model, decay):
    averages = dict(ema.named_parameters())
    for name, parameter in model.named_parameters():
        averages[name].mul_(decay).add_(parameter, alpha=1 - decay)


def train_step(model, ema, optimizer, diffusion, images, labels, args):
    x0 = images.float() / 127.5 - 1
    flip = torch.rand(len(x0)) < 0.5
    x0[flip] = x0[flip].flip(-1)
    y = torch.where(torch.rand(len(labels)) < args.label_dropout, args.classes, labels)
    t = torch.randint(0, NUM_TIMESTEPS, (len(x0),))
    noise = torch.randn_like(x0)
    x_t = diffusion.q_sample(x0, t, noise)
    with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bf16"):
        output = model(x_t, t, y)
    mse, vb = diffusion.loss(output.float(), x0, x_t, t, noise)
    loss = (mse + vb).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad)
    optimizer.step()
    update_ema(ema, model, args.ema_decay)
    return loss.item()


def peak_memory():
    """VmHWM in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    images, labels = load_data(args)
    args.side, args.channels = images.shape[-1], images.shape[1]
    config = Config(input_size=args.side, patch_size=args.patch, in_channels=args.channels, hidden_size=args.hidden,
                    depth=args.depth, num_heads=args.heads, num_classes=args.classes, fused_attention=args.fused)
    model, diffusion = DiT(config), Diffusion()
    model.train()
    ema = deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=args.lr, weight_decay=0)
    seconds, losses, order = [], [], torch.empty(0, dtype=torch.long)
    for _ in range(args.warmup + args.steps):
        start = time.perf_counter()
        if len(order) < args.batch:
            order = torch.randperm(len(images))
        batch, order = order[:args.batch], order[args.batch:]
        losses.append(train_step(model, ema, optimizer, diffusion, images[batch], labels[batch], args))
        seconds.append(time.perf_counter() - start)
    rates = [args.batch / s for s in seconds[args.warmup:]]
    result = {"images_per_second": statistics.median(rates), "rates": rates, "peak_bytes": peak_memory(),
              "first_loss": losses[0], "last_loss": losses[-1], "torch": torch.__version__}
    if args.json:
        print(json.dumps(result))
        return
    print(f"{'fused' if args.fused else 'plain'} attention, {args.dtype}, batch {args.batch}, {args.threads} threads\n"
          f"{statistics.median(rates):.1f} images/s, median of {args.steps} steps "
          f"({min(rates):.1f} to {max(rates):.1f})\n"
          f"peak {result['peak_bytes'] / 2**20:.0f} MiB, loss {losses[0]:.4f} -> {losses[-1]:.4f}, "
          f"torch {torch.__version__}")


if __name__ == "__main__":
    main()
