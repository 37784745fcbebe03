"""Dynamic diffusion transformers on the CPU.

    model = dydit.load("model.safetensors")
    images = model.generate(classes=[3, 8], steps=50, seed=7, cfg_scale=2.0)   # (2, C, H, W) float32
    pictures = dydit.load_vae("vae", model).decode(images)                     # of a model of latents

Tensors are torch's own; the interpreter's lock is released while dydit computes. What cannot be meant raises
ValueError, what fails RuntimeError; Ctrl-C stops between two steps.
"""

import torch  # noqa: F401  loads the LibTorch that the module is linked to

from ._dydit import Model, Vae, __version__, load, load_vae

__all__ = ["Model", "Vae", "__version__", "load", "load_vae"]
