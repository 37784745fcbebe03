// What dydit inspect says of files that are no checkpoints.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace dydit {

/// Prints what a PNG, npz, npy or TensorBoard event file holds; false, and nothing printed, for another file.
bool inspect_file(const std::string& path, std::span<const std::byte> bytes, bool as_json);

}  // namespace dydit
