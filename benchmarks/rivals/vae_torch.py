"""Encodes or decodes by one rival: a worker of compare_vae.py that runs a lap for every line it reads.

    vae_torch.py --rival eager|openvino --vae FOLDER --half decode --side 256 --threads 2 [--dtype bf16]

Networks as plain modules: AutoencoderKL of Stable Diffusion's size (FOLDER as `--export FOLDER` writes it, with random
weights) and the TAESD family (FOLDER with taef2_encoder.pth and taef2_decoder.pth).
Answers "ready VERSION" once warm, then a line a lap: seconds an image and seconds of processors.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

import torch
from torch import nn
from torch.nn import functional

CHANNELS, LAYERS, GROUPS, LATENT = (128, 256, 512, 512), 2, 32, 4


def conv(inputs, outputs, kernel=3, **more):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **more)


class Resnet(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, inputs, 1e-6), conv(inputs, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, outputs, 1e-6), conv(outputs, outputs)
        self.conv_shortcut = conv(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x):
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.group_norm = nn.GroupNorm(GROUPS, channels, 1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x):
        n = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (linear(n).unsqueeze(1) for linear in (self.to_q, self.to_k, self.to_v))
        h = functional.scaled_dot_product_attention(q, k, v).squeeze(1)
        return self.to_out[0](h).transpose(1, 2).reshape(x.shape) + x


class Middle(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(channels, channels) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(channels)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Down(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x):
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    def __init__(self, inputs, outputs, layers, **sampler):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(inputs if i == 0 else outputs, outputs) for i in range(layers)])
        for name, module in sampler.items():
            setattr(self, name, nn.ModuleList([module]))

    def forward(self, x):
        for part in (part for child in self.children() for part in child):
            x = part(x)
        return x


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        c, last = CHANNELS, len(CHANNELS) - 1
        self.conv_in = conv(3, c[0])
        self.down_blocks = nn.ModuleList(
            [Level(c[max(i - 1, 0)], c[i], LAYERS, **({"downsamplers": Down(c[i])} if i < last else {}))
             for i in range(last + 1)])
        self.mid_block, self.conv_norm_out = Middle(c[-1]), nn.GroupNorm(GROUPS, c[-1], 1e-6)
        self.conv_out = conv(c[-1], 2 * LATENT)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        r, last = CHANNELS[::-1], len(CHANNELS) - 1
        self.conv_in, self.mid_block = conv(LATENT, r[0]), Middle(r[0])
        self.up_blocks = nn.ModuleList(
            [Level(r[max(i - 1, 0)], r[i], LAYERS + 1, **({"upsamplers": Up(r[i])} if i < last else {}))
             for i in range(last + 1)])
        self.conv_norm_out, self.conv_out = nn.GroupNorm(GROUPS, r[-1], 1e-6), conv(r[-1], 3)

    def forward(self, z):
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(functional.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.quant_conv, self.post_quant_conv = conv(2 * LATENT, 2 * LATENT, 1), conv(LATENT, LATENT, 1)

    def half(self, name):
        return nn.Sequential(self.encoder, self.quant_conv) if name == "encode" else nn.Sequential(
            self.post_quant_conv, self.decoder)


class Block(nn.Module):
    def __init__(self, channels, pool):
        super().__init__()
        self.conv = nn.Sequential(conv(channels, channels), nn.ReLU(), conv(channels, channels), nn.ReLU(),
                                  conv(channels, channels))
        wide = 4 * channels
        self.pool = nn.Sequential(conv(channels, wide, 1, bias=False), nn.GroupNorm(4, wide), nn.ReLU(),
                                  conv(wide, channels, 1, bias=False)) if pool else None

    def forward(self, x):
        if self.pool is not None:
            x = x + self.pool(x)
        return functional.relu(self.conv(x) + x)


class Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


def taef2(name, latent=32, width=64):
    down = [part for level in range(3) for part in (conv(width, width, stride=2, bias=False),
                                                    *(Block(width, pool=level == 2) for _ in range(3)))]
    if name == "encode":
        return nn.Sequential(conv(3, width), Block(width, False), *down, conv(width, latent))
    up = [part for level in range(3) for part in (*(Block(width, pool=level == 0) for _ in range(3)),
                                                  nn.Upsample(scale_factor=2), conv(width, width, bias=False))]
    return nn.Sequential(Clamp(), conv(latent, width), nn.ReLU(), *up, Block(width, False), conv(width, 3))


def export(folder):
    """A folder of diffusers of Stable Diffusion's size with random weights."""
    from safetensors.torch import save_file
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(AutoencoderKL().state_dict(), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({
        "_class_name": "AutoencoderKL", "block_out_channels": CHANNELS, "layers_per_block": LAYERS, "latent_channels": LATENT,
        "norm_num_groups": GROUPS, "down_block_types": ["DownEncoderBlock2D"] * len(CHANNELS), "in_channels": 3, "out_channels": 3,
        "up_block_types": ["UpDecoderBlock2D"] * len(CHANNELS), "act_fn": "silu", "sample_size": 256}))


def make_module(args):
    if (args.vae / "config.json").exists():
        from safetensors.torch import load_file
        model = AutoencoderKL()
        model.load_state_dict(load_file(args.vae / "diffusion_pytorch_model.safetensors"))
        module, channels = model.half(args.half), LATENT
    else:
        module, channels = taef2(args.half), 32
        weights = torch.load(args.vae / f"taef2_{args.half}r.pth", weights_only=True)
        module.load_state_dict({key: value.float() for key, value in weights.items()})
    torch.manual_seed(1)
    side = args.side if args.half == "encode" else args.side // 8
    return module.eval().requires_grad_(False), torch.randn(1, 3 if args.half == "encode" else channels, side, side)


def torch_call(args):
    torch.set_num_threads(args.threads)
    module, x = make_module(args)
    if args.dtype == "bf16":
        module, x = module.bfloat16(), x.bfloat16()
    if args.channels_last:
        module, x = module.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)

    def call():
        with torch.no_grad():
            return module(x).float().numpy()

    return call, f"torch {torch.__version__}"


def openvino_call(args):
    import openvino as ov
    module, x = make_module(args)
    compiled = ov.compile_model(ov.convert_model(module, example_input=x), "CPU", {
        "INFERENCE_PRECISION_HINT": args.dtype, "INFERENCE_NUM_THREADS": args.threads, "PERFORMANCE_HINT": "LATENCY"})
    request, x = compiled.create_infer_request(), x.numpy()
    return lambda: request.infer([x])[0], f"openvino {ov.__version__.split('-')[0]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", type=pathlib.Path)
    parser.add_argument("--rival", choices=("eager", "openvino"))
    parser.add_argument("--vae", type=pathlib.Path)
    parser.add_argument("--half", choices=("encode", "decode"), default="decode")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--save", type=pathlib.Path, help="what came out, as .npy")
    args = parser.parse_args()
    if args.export:
        return export(args.export)
    call, version = openvino_call(args) if args.rival == "openvino" else torch_call(args)
    out = call()
    if args.save:
        import numpy as np
        np.save(args.save, out)
    print("ready", version, flush=True)
    for _ in sys.stdin:
        call()  # the others had the memory and the caches meanwhile
        start, processors = time.perf_counter(), time.process_time()
        call()
        print(time.perf_counter() - start, time.process_time() - processors, flush=True)


if __name__ == "__main__":
    main()
