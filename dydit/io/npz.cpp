// npz by streaming: headers of fixed length go first with blanks, the images follow, and commit() comes back
// to fill in what only then is known: the number of images, the sizes and the checksum.
#include "dydit/io/npz.h"

#include <string_view>

#include <fmt/format.h>
#include <zlib.h>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/zip.h"

namespace dydit {
namespace {

constexpr std::string_view kMember = "arr_0.npy";
constexpr size_t kNpyHeaderBytes = 128;      // npy wants a multiple of 64; holds any four sizes
constexpr uint16_t kZipVersion = 45;         // ZIP64 needs 4.5
constexpr uint16_t kDosDate = (1 << 5) | 1;  // 1 January 1980: equal images make equal files
constexpr uint16_t kExtra64Bytes = 16;       // size and stored size
constexpr size_t kZipHeaderBytes = zip::kLocalHeaderBytes + kMember.size() + 4 + kExtra64Bytes;

// numpy's format.py, version 1.0: magic, version, length, a Python dict padded with spaces to the newline.
std::string npy_header(int64_t count, int height, int width, int channels) {
  std::string header("\x93NUMPY\x01\x00", 8);
  append_little<uint16_t>(header, kNpyHeaderBytes - 10);
  header += fmt::format("{{'descr': '|u1', 'fortran_order': False, 'shape': ({}, {}, {}, {}), }}", count,
                        height, width, channels);
  header.resize(kNpyHeaderBytes - 1, ' ');
  return header + '\n';
}

// The fields that the local header and the directory entry share, from the version on. `extra_bytes` counts
// the extra field.
void append_common_fields(std::string& out, uint32_t crc, uint16_t extra_bytes) {
  append_little<uint16_t>(out, kZipVersion);
  append_little<uint16_t>(out, 0);  // flags
  append_little<uint16_t>(out, 0);  // method: stored
  append_little<uint16_t>(out, 0);  // time
  append_little<uint16_t>(out, kDosDate);
  append_little<uint32_t>(out, crc);
  append_little<uint32_t>(out, zip::kSeeExtra);  // stored size
  append_little<uint32_t>(out, zip::kSeeExtra);  // size
  append_little<uint16_t>(out, kMember.size());
  append_little<uint16_t>(out, extra_bytes);
}

void append_extra64(std::string& out, uint64_t size) {
  append_little<uint16_t>(out, zip::kExtra64);
  append_little<uint16_t>(out, kExtra64Bytes);
  append_little<uint64_t>(out, size);
  append_little<uint64_t>(out, size);
}

std::string local_header(uint32_t crc, uint64_t size) {
  std::string out;
  append_little<uint32_t>(out, zip::kLocalHeader);
  append_common_fields(out, crc, 4 + kExtra64Bytes);
  out += kMember;
  append_extra64(out, size);
  return out;
}

std::string directory_entry(uint32_t crc, uint64_t size) {
  std::string out;
  append_little<uint32_t>(out, zip::kDirectoryEntry);
  append_little<uint16_t>(out, kZipVersion);  // made by
  append_common_fields(out, crc, 4 + kExtra64Bytes);
  append_little<uint16_t>(out, 0);  // comment
  append_little<uint16_t>(out, 0);  // disk
  append_little<uint16_t>(out, 0);  // internal attributes
  append_little<uint32_t>(out, 0);  // external attributes
  append_little<uint32_t>(out, 0);  // offset of the local header
  out += kMember;
  append_extra64(out, size);
  return out;
}

// The three records that close a ZIP64 file of one member.
std::string directory_end(uint64_t directory_offset, uint64_t directory_size) {
  std::string out;
  append_little<uint32_t>(out, zip::kDirectoryEnd64);
  append_little<uint64_t>(out, zip::kDirectoryEnd64Bytes - 12);  // what follows this field
  append_little<uint16_t>(out, kZipVersion);                     // made by
  append_little<uint16_t>(out, kZipVersion);                     // needed
  append_little<uint64_t>(out, 0);                               // this disk, the directory's disk
  append_little<uint64_t>(out, 1);                               // members here
  append_little<uint64_t>(out, 1);                               // members in all
  append_little<uint64_t>(out, directory_size);
  append_little<uint64_t>(out, directory_offset);

  append_little<uint32_t>(out, zip::kDirectoryLocator64);
  append_little<uint32_t>(out, 0);  // disk
  append_little<uint64_t>(out, directory_offset + directory_size);
  append_little<uint32_t>(out, 1);  // disks in all

  append_little<uint32_t>(out, zip::kDirectoryEnd);
  append_little<uint32_t>(out, 0);  // this disk, the directory's disk
  append_little<uint16_t>(out, 1);  // members here
  append_little<uint16_t>(out, 1);  // members in all
  append_little<uint32_t>(out, zip::kSeeExtra);
  append_little<uint32_t>(out, zip::kSeeExtra);
  append_little<uint16_t>(out, 0);  // comment
  return out;
}

uint32_t checksum(uint32_t crc, const void* data, size_t size) {
  return static_cast<uint32_t>(crc32_z(crc, static_cast<const Bytef*>(data), size));
}

}  // namespace

NpzImageWriter::NpzImageWriter(const std::filesystem::path& path, int height, int width, int channels)
    : file_(path), height_(height), width_(width), channels_(channels) {
  DYDIT_CHECK(height > 0 && width > 0 && channels > 0,
              "{}: images of {}x{}x{} cannot be written; sizes from 1 are "
              "wanted",
              path.string(), height, width, channels);
  file_.write(std::string(kZipHeaderBytes + kNpyHeaderBytes, '\0'));
}

void NpzImageWriter::append(const Image& image) {
  const size_t wanted =
      static_cast<size_t>(height_) * static_cast<size_t>(width_) * static_cast<size_t>(channels_);
  DYDIT_CHECK(image.height == height_ && image.width == width_ && image.channels == channels_ &&
                  image.pixels.size() == wanted,
              "npz: image {} has {}x{}x{} in {} bytes, but the file is of {}x{}x{}", count_, image.height,
              image.width, image.channels, image.pixels.size(), height_, width_, channels_);
  file_.write(std::as_bytes(std::span(image.pixels)));
  data_crc_ = checksum(data_crc_, image.pixels.data(), image.pixels.size());
  ++count_;
}

void NpzImageWriter::commit() {
  const std::string npy = npy_header(count_, height_, width_, channels_);
  const uint64_t end = file_.size();
  const uint64_t size = end - kZipHeaderBytes;
  // The header before the pixels is known last; checksums of neighbours combine.
  const auto pixel_bytes = static_cast<z_off64_t>(size - npy.size());
  const auto crc =
      static_cast<uint32_t>(crc32_combine64(checksum(0, npy.data(), npy.size()), data_crc_, pixel_bytes));
  const std::string head = local_header(crc, size) + npy;
  const std::string entry = directory_entry(crc, size);
  file_.write_at(0, std::as_bytes(std::span(head.data(), head.size())));
  file_.write(entry);
  file_.write(directory_end(end, entry.size()));
  file_.commit();
}

}  // namespace dydit
