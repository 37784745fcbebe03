"""DiTs as a PyTorch user would run them on a GPU: the modules of dit_torch.py with an attention by name, and the sliced DyDiT.

The sliced DyDiT is the honest rival of skipping: how many heads, groups and tokens are on never changes, so the weights of what is on are cut
out once, tokens are chosen by topk, gathered, and added back. What it leaves out is what makes DyDiT dynamic: another set at every
timestep. Letters: B batch, N tokens, C hidden size, n heads that are on, D head size, k tokens kept.
"""

import torch
from dit_torch import Config, DiT, modulate
from torch import nn
from torch.nn import functional as F

SIZES = {"XL/2": (1152, 28, 16), "L/2": (1024, 24, 16), "B/2": (768, 12, 12), "S/2": (384, 12, 6)}
TINY = "tiny"  # of dry runs


def config_of(size, **more):
    if size == TINY:
        return Config(input_size=16, hidden_size=96, depth=2, num_heads=3, num_classes=10, **more)
    hidden, depth, heads = SIZES[size]
    return Config(hidden_size=hidden, depth=depth, num_heads=heads, **more)


def flash(q, k, v):
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


def cudnn(q, k, v):
    return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, False)[0]


ATTENTIONS = {"flash": flash, "cudnn": cudnn, "sdpa": F.scaled_dot_product_attention}


def make_model(size, device, dtype, attention=None, **more):
    """A DiT with random weights everywhere: also where training begins at zero, as zeros are multiplied faster."""
    torch.manual_seed(0)
    with torch.device(device):
        model = DiT(config_of(size, **more)).eval().requires_grad_(False)
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    for block in model.blocks:
        if attention:
            block.attn.attend = ATTENTIONS[attention]
    return model.to(dtype)


def make_inputs(config, batch, device, dtype):
    """x, t, y of `batch` rows: guided images, so the second half has no class."""
    with torch.device(device):
        x = torch.randn(batch, config.in_channels, config.input_size, config.input_size, dtype=dtype)
        y = torch.tensor([row % config.num_classes if row < (batch + 1) // 2 else config.num_classes for row in range(batch)])
        return x, torch.full((batch,), 500), y


def kept(count, share):
    return max(1, round(count * share))


def pick(count, share, generator):
    """Numbers of the heads (groups) that are on, in order; the first always is."""
    others = 1 + torch.randperm(count - 1, generator=generator)[:kept(count, share) - 1]
    return torch.cat([torch.zeros(1, dtype=torch.long), others.sort().values])


def cut_linear(linear, rows=None, columns=None):
    weight, bias = linear.weight, linear.bias
    if rows is not None:
        weight, bias = weight[rows], bias[rows]
    if columns is not None:
        weight = weight[:, columns]
    cut = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    cut.weight, cut.bias = nn.Parameter(weight.contiguous(), False), nn.Parameter(bias.contiguous(), False)
    return cut


def parts_of(numbers, size, device):
    """Indices of parts of `size` neighbours."""
    return (numbers[:, None] * size + torch.arange(size)).flatten().to(device)


class SlicedBlock(nn.Module):
    def __init__(self, block, config, heads, groups, tokens):
        super().__init__()
        C, H, device = config.hidden_size, config.num_heads, block.attn.qkv.weight.device
        columns, channels = parts_of(heads, C // H, device), parts_of(groups, 4 * C // H, device)
        self.num_heads, self.tokens, self.attend = len(heads), tokens, block.attn.attend
        self.qkv = cut_linear(block.attn.qkv, rows=torch.cat([columns, columns + C, columns + 2 * C]))
        self.proj = cut_linear(block.attn.proj, columns=columns)
        self.fc1, self.fc2 = cut_linear(block.mlp.fc1, rows=channels), cut_linear(block.mlp.fc2, columns=channels)
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.adaLN_modulation, self.token_selection = block.adaLN_modulation, block.token_selection

    def forward(self, x, c, t_emb, gates=None):
        B, N, C = x.shape
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
        qkv = self.qkv(modulate(self.norm1(x), shift_msa, scale_msa))
        q, k, v = qkv.reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + gate_msa[:, None] * self.proj(self.attend(q, k, v).transpose(1, 2).reshape(B, N, -1))
        chosen = self.token_selection(x).topk(self.tokens, sorted=False).indices[:, :, None].expand(-1, -1, C)
        rows = modulate(self.norm2(x.gather(1, chosen)), shift_mlp, scale_mlp)
        update = self.fc2(F.gelu(self.fc1(rows), approximate="tanh"))
        return x.scatter_add(1, chosen, gate_mlp[:, None] * update)


def slice_model(model, heads, groups, tokens, seed=0):
    """Cuts a dynamic model's blocks in place; shares of 1. Returns which heads and groups stay, a pair a block."""
    generator, config, sets = torch.Generator().manual_seed(seed), model.config, []
    for index, block in enumerate(model.blocks):
        sets.append((pick(config.num_heads, heads, generator), pick(config.num_heads, groups, generator)))
        model.blocks[index] = SlicedBlock(block, config, *sets[-1], kept(config.num_tokens, tokens))
    return sets


class FixedGates:
    """Gates of the masked DiT that say what slice_model cut: what both compute is the same function."""

    def __init__(self, config, sets, tokens):
        self.config, self.sets, self.count, self.block = config, sets, kept(config.num_tokens, tokens), 0

    def mask(self, logits, numbers):
        mask = torch.zeros(len(logits), self.config.num_heads, dtype=logits.dtype, device=logits.device)
        mask[:, numbers.to(logits.device)] = 1
        return mask

    def heads(self, logits):
        return self.mask(logits, self.sets[self.block][0])

    def groups(self, logits):
        return self.mask(logits, self.sets[self.block][1])

    def tokens(self, logits):
        self.block += 1
        return torch.zeros_like(logits).scatter(1, logits.topk(self.count).indices, 1)


def required_share(config, heads, groups, tokens):
    """Multiply-adds of attention and MLP over those of the complete model."""
    N, C, H = config.num_tokens, config.hidden_size, config.num_heads
    attention, mlp = 4 * N * C**2 + 2 * N**2 * C, 8 * N * C**2
    return (attention * kept(H, heads) / H + mlp * kept(H, groups) / H * kept(N, tokens) / N) / (attention + mlp)
