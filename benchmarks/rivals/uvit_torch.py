"""U-ViT as a PyTorch module, as its paper describes it (Bao et al. 2023): for benchmarks, with random weights."""

import math

import torch
from torch import nn

SIZES = {"U-ViT-S/2": (512, 13, 8), "U-ViT-M/2": (768, 17, 12), "U-ViT-L/2": (1024, 21, 16)}  # blocks: all of them


class Block(nn.Module):
    def __init__(self, hidden, heads, joined):
        super().__init__()
        self.heads = heads
        self.join = nn.Linear(2 * hidden, hidden) if joined else None
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.proj = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden)
        self.fc1, self.fc2 = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x, skip=None):
        if self.join is not None:
            x = self.join(torch.cat([x, skip], dim=-1))
        batch, tokens, hidden = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, tokens, hidden))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class UViT(nn.Module):
    """For latents (B, channels, side, side) of a class each; its time t is in 0..1."""

    def __init__(self, size, side=32, channels=4, patch=2, labels=1001):
        super().__init__()
        hidden, blocks, heads = SIZES[size]
        self.side, self.channels, self.patch, self.hidden, self.half = side, channels, patch, hidden, blocks // 2
        self.patches = nn.Conv2d(channels, hidden, patch, patch)
        self.labels = nn.Embedding(labels, hidden)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 2 + (side // patch) ** 2, hidden))
        self.blocks = nn.ModuleList(Block(hidden, heads, joined=i > self.half) for i in range(blocks))
        self.norm, self.out = nn.LayerNorm(hidden), nn.Linear(hidden, patch * patch * channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        frequencies = torch.exp(-math.log(10000) * torch.arange(hidden // 2) / (hidden // 2))
        self.register_buffer("frequencies", frequencies)

    def forward(self, x, t, y):
        angles = 999 * t[:, None] * self.frequencies[None]
        time = torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype)
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.labels(y)[:, None], time[:, None], h], dim=1) + self.positions
        skips = []
        for i, block in enumerate(self.blocks):
            h = block(h, skips.pop() if i > self.half else None)
            if i < self.half:
                skips.append(h)
        h = self.out(self.norm(h))[:, 2:]
        grid, patch = self.side // self.patch, self.patch
        h = h.view(-1, grid, grid, patch, patch, self.channels).permute(0, 5, 1, 3, 2, 4)
        return self.conv(h.reshape(-1, self.channels, self.side, self.side))
