// Checkpoints as torch zip files, for PyTorch and the tools of DiT.
#pragma once

#include <filesystem>

#include "dydit/model/checkpoint.h"

namespace dydit {

/// Writes {"ema": state dict, "cfg": configuration, "metadata": what save_checkpoint puts there}, every
/// tensor in `dtype` (float32 or bfloat16), pos_embed always in float32. torch.load(weights_only=True) and
/// load_checkpoint read it.
void save_torch_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint,
                           at::ScalarType dtype);

}  // namespace dydit
