"""Makes tests/train/data/finetune.safetensors: ten steps of a tiny fine-tune, by PyTorch and torch.optim.AdamW.

    build/rivals/bin/python tools/make_finetune_vectors.py tests/train/data/finetune.safetensors

An independent loop over benchmarks/rivals/dit_torch.py: DyDiT with hidden 32, 2 blocks, 4 heads, 2 channels of 8x8 in
patches of 2 (16 tokens), 5 classes (label 5 is no class), batch 8. All tensors are float32, labels and timesteps int64.

Metadata: `config` (the model's, JSON) and `options`, JSON with the names of dydit's flags: lr, weight-decay, skip-norm,
ema-decay, lambda, anneal-start, anneal-steps, complete-steps, clip-grad.

    weights.NAME               the start; the EMA starts as a copy (pos_embed included; it is not trained)
    ema.NAME                   the EMA after ten steps, which moved in skipped steps too
    input.x0, input.noise      (10, 8, 2, 8, 8)  images, noise; x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise
    input.t                    (10, 8)           timesteps, 0 among them; sample j in quarter j mod 4
    input.y, input.y_complete  (10, 8)           labels of the dynamic and the complete forward, with their own dropouts
    gumbel.heads.L             (10, 8, 3)        G1 - G2 of block L: added to the logits, then divided by tau = 5
    gumbel.groups.L            (10, 8, 3)
    gumbel.tokens.L            (10, 8, 16)
    out.loss                   (10)  mse + vb + complete_mse + complete_vb + flops_loss, before the step's update
    out.mse, out.vb            (10)  means over the batch, the dynamic model's
    out.complete_mse, out.complete_vb, out.flops_loss    (10)
    out.ratio                  (10)  work ratio by training's gates; out.inference_ratio: by logit > 0
    out.target                 (10)  what flops_loss aims at: 1 - (1 - lambda) s / 10
    out.grad_norm              (10)  L2 over all trainable parameters
    out.skipped                (10)  1 where grad_norm >= skip-norm, so AdamW did nothing (its step count neither)

The loop runs in float32 and in float64, with the same decisions of all gates; what is written is the float32 one. The
tool prints how far they are apart: about what a correct float32 program may differ by.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks/rivals"))
import dit_torch  # noqa: E402

CONFIG = {"input_size": 8, "patch_size": 2, "in_channels": 2, "hidden_size": 32, "depth": 2, "num_heads": 4,
          "num_classes": 5, "learn_sigma": True}
OPTIONS = {"lr": 1e-3, "weight-decay": 0.5, "skip-norm": 4.0, "clip-grad": 0, "ema-decay": 0.99, "lambda": 0.5,
           "anneal-start": 0, "anneal-steps": 10, "complete-steps": 10}
STEPS, BATCH, SEED = 10, 8, 5
LOUD_STEPS = (3, 7)  # their noise is louder, so that their gradient is over skip-norm


def start_model():
    """Nothing is zero and nothing is large: every parameter matters to every term. Router biases are 0."""
    torch.manual_seed(SEED)
    model = dit_torch.DiT(dit_torch.Config(**CONFIG, dynamic=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "pos_embed":
                continue
            router = "router" in name or "token_selection" in name
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0, (1.5 if router else 0.7) / fan_in**0.5)
            elif router:
                parameter.zero_()
            else:
                parameter.normal_(0, 0.2)
        model.y_embedder.embedding_table.weight.normal_(0, 0.5)
    return model


def record_inputs():
    generator = torch.Generator().manual_seed(SEED)
    shape = (STEPS, BATCH, CONFIG["in_channels"], CONFIG["input_size"], CONFIG["input_size"])
    inputs = {"input.x0": torch.randn(shape, generator=generator).mul(0.6).clamp(-1, 1),
              "input.noise": torch.randn(shape, generator=generator)}
    inputs["input.noise"][list(LOUD_STEPS)] *= 1.7
    quarter = torch.arange(BATCH) % 4 * 250
    inputs["input.t"] = quarter + torch.randint(0, 250, (STEPS, BATCH), generator=generator)
    inputs["input.t"][0, 0] = inputs["input.t"][6, 4] = 0
    labels = torch.randint(0, CONFIG["num_classes"], (STEPS, BATCH), generator=generator)
    for name in ("input.y", "input.y_complete"):
        dropped = torch.rand(STEPS, BATCH, generator=generator) < 0.2
        inputs[name] = torch.where(dropped, CONFIG["num_classes"], labels)
    heads = CONFIG["num_heads"]
    for block in range(CONFIG["depth"]):
        for kind, count in (("heads", heads - 1), ("groups", heads - 1), ("tokens", 16)):
            u = torch.rand(2, STEPS, BATCH, count, generator=generator).double().clamp(1e-6, 1 - 1e-6)
            gumbel = -(-u.log()).log()
            inputs[f"gumbel.{kind}.{block}"] = (gumbel[0] - gumbel[1]).float()
    return inputs


def target_ratio(step):
    return 1 - (1 - OPTIONS["lambda"]) * min(step, OPTIONS["anneal-steps"]) / OPTIONS["anneal-steps"]


def finetune(inputs, dtype):
    """Ten steps -> {"out.*"}, {name: final EMA}, {name: final weights}, masks of every step, smallest margin."""
    model = start_model().to(dtype)
    diffusion = dit_torch.Diffusion()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=OPTIONS["lr"], betas=(0.9, 0.999), eps=1e-8,
                                  weight_decay=OPTIONS["weight-decay"])
    ema = {name: p.detach().clone() for name, p in trained.items()}
    rows, decisions, margin = [], [], float("inf")
    for step in range(STEPS):
        batch = {name: value[step].to(dtype) if value.is_floating_point() else value[step]
                 for name, value in inputs.items()}
        x0, t, noise = batch["input.x0"], batch["input.t"], batch["input.noise"]
        x_t = diffusion.q_sample(x0, t, noise)
        gates = dit_torch.Gates(model.config, [{kind: batch[f"gumbel.{kind}.{block}"]
                                                for kind in ("heads", "groups", "tokens")}
                                               for block in range(CONFIG["depth"])])
        mse, vb = diffusion.loss(model(x_t, t, batch["input.y"], gates), x0, x_t, t, noise)
        complete_mse, complete_vb = diffusion.loss(model(x_t, t, batch["input.y_complete"]), x0, x_t, t, noise)
        ratio, target = gates.ratio(gates.masks), target_ratio(step)
        flops = dit_torch.flops_loss(ratio, target)
        loss = (mse + vb).mean() + (complete_mse + complete_vb).mean() + flops
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in trained.values()]).norm()
        skipped = not norm < OPTIONS["skip-norm"]
        if not skipped:
            optimizer.step()
        with torch.no_grad():
            for name, parameter in trained.items():
                ema[name].mul_(OPTIONS["ema-decay"]).add_(parameter, alpha=1 - OPTIONS["ema-decay"])
        rows.append({"loss": loss, "mse": mse.mean(), "vb": vb.mean(), "complete_mse": complete_mse.mean(),
                     "complete_vb": complete_vb.mean(), "flops_loss": flops, "ratio": ratio.mean(),
                     "inference_ratio": gates.ratio(gates.inference).mean(), "target": target, "grad_norm": norm,
                     "skipped": float(skipped)})
        margin = min(margin, gates.margin)
        decisions.append(torch.cat([mask.detach().flatten() for masks in (gates.masks, gates.inference)
                                    for kind in masks.values() for mask in kind]).bool())
    out = {f"out.{key}": torch.tensor([float(torch.as_tensor(row[key]).detach()) for row in rows]) for key in rows[0]}
    return out, ema, {name: p.detach() for name, p in trained.items()}, torch.stack(decisions), margin


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def main():
    torch.set_num_threads(1)
    inputs = record_inputs()
    out, ema, final, decisions, margin = finetune(inputs, torch.float32)
    out64, ema64, _, decisions64, _ = finetune(inputs, torch.float64)
    start = {name: p.detach().clone() for name, p in start_model().named_parameters()}

    assert torch.equal(decisions, decisions64), "a gate falls otherwise in float64: choose another SEED"
    for key in out:
        print(f"{key:22}", " ".join(f"{value:8.4f}" for value in out[key].tolist()))
    print(f"smallest |logit + noise| {margin:.1e}")
    print("float32 against float64:")
    terms = max(((out[k] - out64[k]).abs() / out64[k].abs().clamp(min=1e-3)).max().item() for k in out)
    print(f"  terms            {terms:.1e}")
    worst = max(ema, key=lambda name: relative(ema[name], ema64[name]))
    print(f"  EMA              {relative(ema[worst], ema64[worst]):.1e}  {worst}")
    moved = {name: relative(ema[name] - start[name], ema64[name] - start[name]) for name in ema}
    for name in sorted(moved, key=moved.get)[-3:]:
        print(f"  EMA - start      {moved[name]:.1e}  {name}")
    print(f"  the EMA moved by {min(relative(ema[n], start[n]) for n in ema):.1e} at least")

    tensors = dict(inputs)
    tensors |= {f"weights.{name}": value for name, value in start.items()}
    tensors |= {f"ema.{name}": value for name, value in ema.items()}
    tensors |= out
    path = pathlib.Path(sys.argv[1])
    save_file({name: value.contiguous() for name, value in tensors.items()}, path,
              metadata={"config": json.dumps(CONFIG), "options": json.dumps(OPTIONS)})
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
