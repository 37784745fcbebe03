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

/// What the header of an array says; the array may be of any type that numpy writes as one text.
struct NpyHeader {
  std::string type;  // numpy's descr: "<f4", "|u1", "<U5"
  bool fortran_order = false;
  std::vector<int64_t> shape;
  size_t bytes = 0;  // of the header itself
};

/// True when the first bytes are those of the npy format.
bool is_npy(std::span<const std::byte> bytes);

/// The header of an npy of which the first bytes are at hand. Throws Error that begins with `what`.
NpyHeader parse_npy_header(std::span<const std::byte> bytes, const std::string& what);

/// Reads the npy format, versions 1 to 3. Throws Error that begins with `what`.
NpyArray parse_npy(std::span<const std::byte> bytes, const std::string& what);

/// The array `array` (without ".npy") of an npz file, or nothing when there is none. A deflated member may
/// unpack to `max_bytes`. `file` names the file in an Error.
std::optional<NpyArray> read_npz_array(const ZipArchive& archive, std::string_view array, uint64_t max_bytes,
                                       const std::string& file);

/// An array of an npz file as its header describes it.
struct NpzEntry {
  std::string name;  // without ".npy"
  NpyHeader header;
};

/// The arrays of an npz file, by name; their numbers are neither unpacked nor checked. Members that are no
/// NAME.npy are passed over.
std::vector<NpzEntry> list_npz(const ZipArchive& archive, const std::string& file);

/// numpy's name of a type: "float32" of "<f4"; big-endian and other types stay as they are.
std::string npy_type_name(const std::string& type);

/// An element of an array of kind b, i or u, widened; unsigned 64-bit values beyond int64_t become negative.
int64_t integer_at(const NpyArray& array, size_t index);

/// What an array of class labels holds.
struct LabelSummary {
  int64_t count = 0;
  int num_classes = 0;  // labels that occur
  int lowest = 0, highest = 0;
};

/// Nothing unless `labels` is a list of integers from 0 to 65535.
std::optional<LabelSummary> summarize_labels(const NpyArray& labels);

}  // namespace dydit
