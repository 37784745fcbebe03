// What dydit inspect says of files that are no checkpoints.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "cli.h"

namespace dydit {

/// Prints what a file holds.
using InspectFile = void (*)(const Cli& cli, const std::string& path, std::span<const std::byte> bytes);

/// Of a PNG, npz, npy or TensorBoard event file; null: it may be a checkpoint.
InspectFile inspector_of(std::span<const std::byte> bytes);

}  // namespace dydit
