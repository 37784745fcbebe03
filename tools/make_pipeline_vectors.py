"""Adds to tests/golden/diffusers, which make_diffusers_model.py makes, what a whole pipeline has: a small autoencoder of
random weights, and the images that diffusers' DiTPipeline makes of both.

    python3 -m venv /var/tmp/v && /var/tmp/v/bin/pip install numpy==2.2.6 torch==2.11.0 safetensors diffusers==0.42.1
    /var/tmp/v/bin/python tools/make_pipeline_vectors.py tests/golden/diffusers

    vae/                    AutoencoderKL of two levels, 4 latent channels, float16
    pipeline.safetensors    images (3, 16, 16, 3) uint8 of classes 0, 3, 4: DDIM, 8 steps, guidance 4, seed 5
"""

import json
import pathlib
import sys

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from safetensors.torch import save_file

CLASSES, STEPS, SEED = [0, 3, 4], 8, 5


def make_autoencoder(folder):
    torch.manual_seed(3)
    vae = AutoencoderKL(block_out_channels=[8, 16], norm_num_groups=4, latent_channels=4, sample_size=16,
                        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
    with torch.no_grad():
        for name, value in vae.named_parameters():
            if "norm" in name:
                value += 0.3 * torch.randn_like(value)
    vae.half().save_pretrained(folder)


def main(folder):
    make_autoencoder(folder / "vae")
    transformer = DiTTransformer2DModel.from_pretrained(folder / "transformer").eval()
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    null, forward = transformer.config.num_embeds_ada_norm, transformer.forward
    # The pipeline has ImageNet's 1000 typed in as the class of none.
    transformer.forward = lambda *args, class_labels, **more: forward(
        *args, class_labels=torch.where(class_labels == 1000, null, class_labels), **more)
    pipeline = DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(class_labels=CLASSES, guidance_scale=4.0, num_inference_steps=STEPS, output_type="np",
                      generator=torch.manual_seed(SEED)).images
    print("mean", images.mean(), "std", images.std(), "at the ends", ((images == 0) | (images == 1)).mean())
    save_file({"images": torch.from_numpy((images * 255).round().astype(np.uint8))}, folder / "pipeline.safetensors")
    index = json.loads((folder / "model_index.json").read_text())
    index.update(vae=["diffusers", "AutoencoderKL"], scheduler=["diffusers", "DDIMScheduler"])
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
