// Arrays out of an npz file as numpy.savez and savez_compressed write it: members NAME.npy, stored or
// deflated, ZIP64 or not.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dydit/io/inflate.h"
#include "dydit/io/zip.h"

namespace dydit {

/// An array of plain numbers, little-endian, in C order.
struct NpyArray {
  char kind = 'u';    // numpy's letter: b bool, i integer, u unsigned, f floating point
  int item_size = 1;  // bytes
  std::vector<int64_t> shape;
  std::span<const std::byte> data;         // not aligned
  std::shared_ptr<const Buffer> unpacked;  // holds `data` when the member was deflated
};

/// Reads the npy format, versions 1 to 3. Throws Error that begins with `what`.
NpyArray parse_npy(std::span<const std::byte> bytes, const std::string& what);

/// The array `array` (without ".npy") of an npz file, or nothing when there is none. A deflated member may
/// unpack to `max_bytes`. `file` names the file in an Error.
std::optional<NpyArray> read_npz_array(const ZipArchive& archive, std::string_view array, uint64_t max_bytes,
                                       const std::string& file);

}  // namespace dydit
