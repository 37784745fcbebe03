"""Small autoencoders of random weights, for tests of the program."""

import json

import numpy as np

import support


def kl_tensors(channels=(8, 16), latent_channels=4, layers=1, seed=0):
    """An AutoencoderKL under diffusers' names."""
    draw = np.random.default_rng(seed)
    tensors = {}

    def conv(name, inputs, outputs, side=3):
        tensors[name + ".weight"] = (draw.standard_normal((outputs, inputs, side, side)) / np.sqrt(inputs * side * side)).astype(np.float32)
        tensors[name + ".bias"] = (0.1 * draw.standard_normal(outputs)).astype(np.float32)

    def norm(name, size):
        tensors[name + ".weight"] = (1 + 0.2 * draw.standard_normal(size)).astype(np.float32)
        tensors[name + ".bias"] = (0.1 * draw.standard_normal(size)).astype(np.float32)

    def resnet(name, inputs, outputs):
        norm(name + ".norm1", inputs)
        conv(name + ".conv1", inputs, outputs)
        norm(name + ".norm2", outputs)
        conv(name + ".conv2", outputs, outputs)
        if inputs != outputs:
            conv(name + ".conv_shortcut", inputs, outputs, side=1)

    def middle(name, size):
        resnet(name + ".resnets.0", size, size)
        norm(name + ".attentions.0.group_norm", size)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            tensors[f"{name}.attentions.0.{part}.weight"] = (draw.standard_normal((size, size)) / np.sqrt(size)).astype(np.float32)
            tensors[f"{name}.attentions.0.{part}.bias"] = (0.1 * draw.standard_normal(size)).astype(np.float32)
        resnet(name + ".resnets.1", size, size)

    levels, top = len(channels), channels[-1]
    conv("encoder.conv_in", 3, channels[0])
    for i, size in enumerate(channels):
        for j in range(layers):
            resnet(f"encoder.down_blocks.{i}.resnets.{j}", channels[max(i - 1, 0)] if j == 0 else size, size)
        if i + 1 < levels:
            conv(f"encoder.down_blocks.{i}.downsamplers.0.conv", size, size)
    middle("encoder.mid_block", top)
    norm("encoder.conv_norm_out", top)
    conv("encoder.conv_out", top, 2 * latent_channels)
    conv("quant_conv", 2 * latent_channels, 2 * latent_channels, side=1)
    conv("post_quant_conv", latent_channels, latent_channels, side=1)
    conv("decoder.conv_in", latent_channels, top)
    middle("decoder.mid_block", top)
    falling = channels[::-1]
    for i, size in enumerate(falling):
        for j in range(layers + 1):
            resnet(f"decoder.up_blocks.{i}.resnets.{j}", falling[max(i - 1, 0)] if j == 0 else size, size)
        if i + 1 < levels:
            conv(f"decoder.up_blocks.{i}.upsamplers.0.conv", size, size)
    norm("decoder.conv_norm_out", channels[0])
    conv("decoder.conv_out", channels[0], 3)
    return tensors


def kl_config(channels=(8, 16), latent_channels=4, layers=1, **more):
    return {"_class_name": "AutoencoderKL", "block_out_channels": list(channels), "layers_per_block": layers,
            "down_block_types": ["DownEncoderBlock2D"] * len(channels), "up_block_types": ["UpDecoderBlock2D"] * len(channels),
            "latent_channels": latent_channels, "norm_num_groups": 4, **more}


def write_kl(folder, seed=0, tensors=None, config=None, **shape):
    """A folder as diffusers' save_pretrained leaves it. Returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    support.save_file(tensors or kl_tensors(seed=seed, **shape), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or kl_config(**shape)))
    return folder
