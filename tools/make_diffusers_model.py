"""Makes tests/golden/diffusers: a small DiT of random weights as diffusers keeps it, and what it computes.

    python3 -m venv /var/tmp/v && /var/tmp/v/bin/pip install numpy==2.2.6 torch==2.11.0 safetensors diffusers==0.42.1
    /var/tmp/v/bin/python tools/make_diffusers_model.py tests/golden/diffusers

    model_index.json, transformer/      a pipeline's folder without its other parts
    forward.safetensors                 x (4, 4, 8, 8) float32, t (4) and y (4) int64, out (4, 8, 8, 8) float32
"""

import json
import pathlib
import sys

import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import save_file

CLASSES = 5


def main(folder):
    torch.manual_seed(7)
    model = DiTTransformer2DModel(num_attention_heads=3, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
                                  sample_size=8, patch_size=2, num_embeds_ada_norm=CLASSES).eval()
    with torch.no_grad():
        embedders = [block.norm1.emb for block in model.transformer_blocks]
        for other in embedders[1:]:  # as in the published file: one embedder in all blocks
            other.load_state_dict(embedders[0].state_dict())
        # Rows of small variance, so that the eps of the norm before the MLP shows.
        model.pos_embed.proj.weight *= 0.1
        x, t = torch.randn(4, 4, 8, 8), torch.tensor([0, 10, 500, 999])
        y = torch.tensor([0, 3, CLASSES - 1, CLASSES])
        out = model(x, timestep=t, class_labels=y).sample
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder / "transformer")
    names = {str(i): f"class {i}" for i in range(CLASSES)}
    (folder / "model_index.json").write_text(json.dumps(
        {"_class_name": "DiTPipeline", "id2label": names, "transformer": ["diffusers", "DiTTransformer2DModel"]}, indent=2) + "\n")
    save_file({"x": x, "t": t, "y": y, "out": out.contiguous()}, folder / "forward.safetensors")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
