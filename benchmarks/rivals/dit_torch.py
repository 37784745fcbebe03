"""DiT and the masked DyDiT in plain PyTorch, with the published parameter names, and the training loss.

Written from the papers (DiT; DyDiT, ICLR 2025) as a PyTorch user would write it: every gate multiplies, nothing is
skipped. It is what dydit is timed against and, in tools/, an independent second opinion on its numbers.
Letters: B batch, N tokens, C hidden size, H heads and groups, D = C/H. tools/check_torch_model.py proves it.
"""

import json
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

GUMBEL_TAU = 5.0
NUM_TIMESTEPS = 1000


@dataclass
class Config:
    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 384
    depth: int = 12
    num_heads: int = 6
    num_classes: int = 1000
    learn_sigma: bool = True
    dynamic: bool = False
    fused_attention: bool = True  # scaled_dot_product_attention; else matmul, softmax, matmul

    @property
    def num_tokens(self):
        return (self.input_size // self.patch_size) ** 2

    @property
    def out_channels(self):
        return self.in_channels * (2 if self.learn_sigma else 1)


# --- the model ---------------------------------------------------------------------------------------------------


class PatchEmbed(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, config.patch_size, config.patch_size)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)  # (B, N, C)


class TimestepEmbedder(nn.Module):
    def __init__(self, hidden_size, num_frequencies=256):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(num_frequencies, hidden_size), nn.SiLU(),
                                 nn.Linear(hidden_size, hidden_size))
        half = num_frequencies // 2
        # float32 throughout: angles in double move the routers' logits.
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t):
        angles = t.float()[:, None] * self.frequencies.float()
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding_table = nn.Embedding(config.num_classes + 1, config.hidden_size)  # the last row: no class

    def forward(self, y):
        return self.embedding_table(y)


def plain_attention(q, k, v):
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return weights.softmax(dim=-1) @ v


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_heads
        self.attend = F.scaled_dot_product_attention if config.fused_attention else plain_attention
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x, head_gate=None):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        heads = self.attend(q, k, v)
        if head_gate is not None:
            heads = heads * head_gate[:, :, None, None]
        return self.proj(heads.transpose(1, 2).reshape(B, N, C))


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_groups = config.num_heads
        self.fc1 = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.fc2 = nn.Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, x, group_gate=None):
        hidden = self.fc1(x)
        if group_gate is not None:  # before GELU, the bias of fc1 included
            hidden = (hidden.unflatten(-1, (self.num_groups, -1)) * group_gate[:, None, :, None]).flatten(-2)
        return self.fc2(F.gelu(hidden, approximate="tanh"))


class WidthRouter(nn.Module):
    """t_emb (B, C) -> logits of heads (groups) 1..H-1; number 0 is always on."""

    def __init__(self, config):
        super().__init__()
        self.router = nn.Linear(config.hidden_size, config.num_heads - 1)

    def forward(self, t_emb):
        return self.router(t_emb)


class TokenRouter(nn.Module):
    """x (B, N, C) -> logits (B, N)."""

    def __init__(self, config):
        super().__init__()
        C = config.hidden_size
        self.mlp_head = nn.Sequential(nn.Linear(C, C // 16), nn.ReLU(), nn.Linear(C // 16, 1))

    def forward(self, x):
        return self.mlp_head(x).squeeze(-1)


def modulate(x, shift, scale):
    return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(config)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.hidden_size, 6 * config.hidden_size))
        if config.dynamic:
            self.attn_rate, self.mlp_rate = WidthRouter(config), WidthRouter(config)
            self.token_selection = TokenRouter(config)

    def forward(self, x, c, t_emb, gates=None):
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
        heads = groups = None
        if gates is not None:
            heads = gates.heads(self.attn_rate(t_emb))
            groups = gates.groups(self.mlp_rate(t_emb))
        x = x + gate_msa[:, None] * self.attn(modulate(self.norm1(x), shift_msa, scale_msa), heads)
        update = self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp), groups)
        if gates is not None:
            update = update * gates.tokens(self.token_selection(x))[:, :, None]
        return x + gate_mlp[:, None] * update


class FinalLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.hidden_size
        self.norm_final = nn.LayerNorm(C, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(C, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(C, 2 * C))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbed(config)
        self.t_embedder = TimestepEmbedder(config.hidden_size)
        self.y_embedder = LabelEmbedder(config)
        self.pos_embed = nn.Parameter(sincos_pos_embed(config), requires_grad=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)
        self.initialize()

    def initialize(self):
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.config.hidden_size, -1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        for weight in (self.y_embedder.embedding_table.weight, self.t_embedder.mlp[0].weight,
                       self.t_embedder.mlp[2].weight):
            nn.init.normal_(weight, std=0.02)
        zeroed = [block.adaLN_modulation[1] for block in self.blocks]
        for layer in zeroed + [self.final_layer.adaLN_modulation[1], self.final_layer.linear]:
            nn.init.zeros_(layer.weight)
        if self.config.dynamic:  # everything on
            for block in self.blocks:
                nn.init.constant_(block.attn_rate.router.bias, 15)
                nn.init.constant_(block.mlp_rate.router.bias, 15)
                nn.init.constant_(block.token_selection.mlp_head[2].bias, 35)

    def forward(self, x, t, y, gates=None):
        """x (B, in_channels, side, side), t (B) 0..999, y (B) -> (B, out_channels, side, side). Without gates: the
        complete model."""
        t_emb = self.t_embedder(t)
        c = t_emb + self.y_embedder(y)
        h = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            h = block(h, c, t_emb, gates)
        return self.unpatchify(self.final_layer(h, c))

    def unpatchify(self, x):
        g, p, c = self.config.input_size // self.config.patch_size, self.config.patch_size, self.config.out_channels
        return torch.einsum("nhwpqc->nchpwq", x.reshape(-1, g, g, p, p, c)).reshape(-1, c, g * p, g * p)


def sincos_pos_embed(config):
    quarter, grid = config.hidden_size // 4, config.input_size // config.patch_size
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * omega
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, C/2)
    w = axis[None].expand(grid, -1, -1)
    h = axis[:, None].expand(-1, grid, -1)
    return torch.cat([w, h], dim=2).reshape(1, grid * grid, -1).float()


# --- gates -------------------------------------------------------------------------------------------------------


class Gates:
    """Decides block after block and keeps the masks. `noise`: for every block {"heads", "groups": (B, H-1), "tokens":
    (B, N)}, G1 - G2 of Gumbel draws, for training's straight-through gates; None: inference, on iff logit > 0."""

    def __init__(self, config, noise=None):
        self.config, self.noise = config, noise
        self.masks = {"heads": [], "groups": [], "tokens": []}       # of this forward
        self.inference = {"heads": [], "groups": [], "tokens": []}   # what logit > 0 would say to the same logits
        self.margin = math.inf  # smallest |logit + noise|: how near a decision was to falling the other way

    def heads(self, logits):
        return self.decide("heads", logits, first_on=True)

    def groups(self, logits):
        return self.decide("groups", logits, first_on=True)

    def tokens(self, logits):
        return self.decide("tokens", logits, first_on=False)

    def decide(self, kind, logits, first_on):
        hard = (logits.detach() > 0).to(logits.dtype)
        if self.noise is None:
            mask = hard
        else:
            noisy = logits + self.noise[len(self.masks[kind])][kind]
            soft = torch.sigmoid(noisy / GUMBEL_TAU)
            mask = (soft.detach() > 0.5).to(soft.dtype) + (soft - soft.detach())  # straight-through
            self.margin = min(self.margin, noisy.detach().abs().min().item())
        if first_on:
            mask, hard = F.pad(mask, (1, 0), value=1.0), F.pad(hard, (1, 0), value=1.0)
        self.masks[kind].append(mask)
        self.inference[kind].append(hard)
        return mask

    def ratio(self, masks):
        """(B): work done over the work of the complete model, in multiply-adds of attention and MLP."""
        N, C = self.config.num_tokens, self.config.hidden_size
        attention, mlp = 4 * N * C**2 + 2 * N**2 * C, 8 * N * C**2
        work = sum(attention * heads.mean(1) + mlp * groups.mean(1) * tokens.mean(1)
                   for heads, groups, tokens in zip(masks["heads"], masks["groups"], masks["tokens"]))
        return work / (self.config.depth * (attention + mlp))


def draw_gate_noise(config, batch):
    def logistic(*shape):  # the difference of two Gumbel draws
        u = torch.rand(shape).clamp(1e-6, 1 - 1e-6)
        return u.log() - (-u).log1p()

    H, N = config.num_heads, config.num_tokens
    return [{"heads": logistic(batch, H - 1), "groups": logistic(batch, H - 1), "tokens": logistic(batch, N)}
            for _ in range(config.depth)]


def flops_loss(ratio, target):
    return 2 * (ratio.mean() - target) ** 2


# --- diffusion ---------------------------------------------------------------------------------------------------


class Diffusion:
    """1000 linear betas, noise prediction, learned-range variance; tables in float64."""

    def __init__(self):
        betas = torch.linspace(1e-4, 2e-2, NUM_TIMESTEPS, dtype=torch.float64)
        a = torch.cumprod(1 - betas, dim=0)
        a_before = torch.cat([torch.ones(1, dtype=torch.float64), a[:-1]])
        variance = betas * (1 - a_before) / (1 - a)
        self.sqrt_a, self.sqrt_one_minus_a = a.sqrt(), (1 - a).sqrt()
        self.sqrt_recip_a, self.sqrt_recipm1_a = (1 / a).sqrt(), (1 / a - 1).sqrt()
        self.log_beta = betas.log()
        self.posterior_log_variance = torch.cat([variance[1:2], variance[1:]]).log()  # entry 0 would be log 0
        self.coef1 = betas * a_before.sqrt() / (1 - a)
        self.coef2 = (1 - a_before) * (1 - betas).sqrt() / (1 - a)

    @staticmethod
    def at(table, t, like):
        return table[t].to(like.dtype)[:, None, None, None]

    def q_sample(self, x0, t, noise):
        return self.at(self.sqrt_a, t, x0) * x0 + self.at(self.sqrt_one_minus_a, t, x0) * noise

    def loss(self, output, x0, x_t, t, noise):
        """(B) each: mse of the noise; variational bound in bits, which trains the variance alone."""
        if output.shape[1] == x0.shape[1]:
            mse = ((noise - output) ** 2).flatten(1).mean(1)
            return mse, torch.zeros_like(mse)
        eps, values = output.chunk(2, dim=1)
        mse = ((noise - eps) ** 2).flatten(1).mean(1)

        def at(table):
            return self.at(table, t, x0)

        true_log_variance = at(self.posterior_log_variance)
        fraction = (values + 1) / 2
        log_variance = fraction * at(self.log_beta) + (1 - fraction) * true_log_variance
        predicted_x0 = at(self.sqrt_recip_a) * x_t - at(self.sqrt_recipm1_a) * eps.detach()
        mean = at(self.coef1) * predicted_x0 + at(self.coef2) * x_t
        true_mean = at(self.coef1) * x0 + at(self.coef2) * x_t
        kl = 0.5 * (log_variance - true_log_variance - 1 + (true_log_variance - log_variance).exp()
                    + (true_mean - mean) ** 2 * (-log_variance).exp())
        nll = -discretized_log_likelihood(x0, mean, log_variance / 2)
        vb = torch.where(t == 0, nll.flatten(1).mean(1), kl.flatten(1).mean(1)) / math.log(2)
        return mse, vb


def discretized_log_likelihood(x, mean, log_scale):
    """Of x in bins of 2/255 under a Gaussian whose distribution function is approximated by tanh."""
    def cdf(z):
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    centered, inverse = x - mean, torch.exp(-log_scale)
    upper, lower = cdf(inverse * (centered + 1 / 255)), cdf(inverse * (centered - 1 / 255))

    def log(p):
        return p.clamp(min=1e-12).log()

    return torch.where(x < -0.999, log(upper), torch.where(x > 0.999, log(1 - lower), log(upper - lower)))


# --- files -------------------------------------------------------------------------------------------------------


def load_model(path, **overrides):
    """A model from a safetensors checkpoint with its configuration in the metadata."""
    from safetensors import safe_open
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        weights = {name: file.get_tensor(name) for name in file.keys()}
    config.pop("mlp_ratio", None)
    dynamic = any(".router." in name for name in weights)
    known = {key: value for key, value in config.items() if key in Config.__dataclass_fields__}
    model = DiT(Config(**known, dynamic=dynamic, **overrides))
    model.load_state_dict(weights)
    return model
