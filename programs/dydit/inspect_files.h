// What dydit inspect says of files that are no checkpoints.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace dydit {

/// A PNG, npz, npy or TensorBoard event file; else it may be a checkpoint.
bool is_other_file(std::span<const std::byte> bytes);

/// Prints what such a file holds.
void inspect_file(const std::string& path, std::span<const std::byte> bytes, bool as_json);

}  // namespace dydit
