"""Holds benchmarks/rivals/dit_torch.py to the vectors recorded from the published code.

    build/rivals/bin/python tools/check_torch_model.py [tests/golden]

Forwards within 1e-5 of the largest value and all masks equal; loss terms and every gradient (norm-wise) within 1e-4.
"""

import pathlib
import sys

import torch
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks/rivals"))
import dit_torch  # noqa: E402

FORWARD_TOLERANCE, TRAINING_TOLERANCE = 1e-5, 1e-4
failures = 0


def report(what, error, tolerance):
    global failures
    bad = not error <= tolerance
    failures += bad
    print(f"{'FAIL' if bad else 'ok  '} {what:28} {error:.2e}  (wanted {tolerance:.0e})")


def relative(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def check_forward(model, reference):
    x, t, y = reference["x"], reference["t"], reference["y"]
    gates = dit_torch.Gates(model.config)
    with torch.no_grad():
        report("out", relative(model(x, t, y, gates), reference["out"]), FORWARD_TOLERANCE)
        report("out_static", relative(model(x, t, y), reference["out_static"]), FORWARD_TOLERANCE)
    for ours, theirs in (("heads", "attn_mask"), ("groups", "mlp_mask"), ("tokens", "token_mask")):
        masks = torch.stack(gates.masks[ours], dim=1)
        report(theirs, (masks != reference[theirs]).float().mean().item(), 0)


def check_training(model, reference):
    x0, t, y, noise = (reference[name] for name in ("x0", "t", "y", "noise"))
    gumbel = [{"heads": reference[f"gumbel.{i}.attn"], "groups": reference[f"gumbel.{i}.mlp"],
               "tokens": reference[f"gumbel.{i}.token"].squeeze(-1)} for i in range(model.config.depth)]
    diffusion, gates = dit_torch.Diffusion(), dit_torch.Gates(model.config, gumbel)
    x_t = diffusion.q_sample(x0, t, noise)
    terms = {}
    terms["mse"], terms["vb"] = diffusion.loss(model(x_t, t, y, gates), x0, x_t, t, noise)
    terms["complete_mse"], terms["complete_vb"] = diffusion.loss(model(x_t, t, y), x0, x_t, t, noise)
    terms["flops_ratio"] = gates.ratio(gates.masks).mean().reshape(1)
    terms["flops_loss"] = dit_torch.flops_loss(gates.ratio(gates.masks), reference["target"])
    diffusion_terms = terms["mse"] + terms["vb"] + terms["complete_mse"] + terms["complete_vb"]
    terms["total"] = diffusion_terms.mean() + terms["flops_loss"]
    for name, value in terms.items():
        report(name, relative(value.detach(), reference[name]), TRAINING_TOLERANCE)
    terms["total"].sum().backward()
    want = {name: reference[f"grad.{name}"] for name, p in model.named_parameters() if p.requires_grad}
    floor = 1e-6 * torch.stack([g.norm() for g in want.values()]).norm()
    errors = {name: ((model.get_parameter(name).grad - g).norm() / torch.maximum(g.norm(), floor)).item()
              for name, g in want.items()}
    worst = max(errors, key=errors.get)
    report(f"{len(errors)} gradients, worst:", errors[worst], TRAINING_TOLERANCE)
    print(f"     {worst}")


def main():
    golden = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/golden"
    torch.set_num_threads(1)
    for fused in (True, False):
        print(f"attention {'fused' if fused else 'by matmul, softmax, matmul'}")
        model = dit_torch.load_model(golden / "model.safetensors", fused_attention=fused)
        check_forward(model, load_file(golden / "forward.safetensors"))
        check_training(model, load_file(golden / "training.safetensors"))
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
