// Small valid files of every format, put together in memory by hand: not with the project's own writers, so
// that forms which those never write are among them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/zip_builder.h"

namespace dydit::fuzz {

std::vector<std::string> safetensors_seeds();
std::vector<std::string> pickle_seeds();
std::vector<std::string> torch_seeds();
std::vector<std::string> legacy_seeds();
std::vector<std::string> npy_seeds();
std::vector<std::string> npz_seeds();
std::vector<std::string> tar_seeds();
std::vector<std::string> gzip_seeds();
std::vector<std::string> event_seeds();
std::vector<std::string> png_seeds();
std::vector<std::string> jpeg_seeds();

/// A torch archive around a pickle, with storages "0" and "1" of 64 bytes.
std::string torch_archive(const std::string& pickle);
/// A legacy stream around a pickle, with storages "0" and "1" of `numel` elements of `size` bytes.
std::string legacy_stream(const std::string& pickle, uint64_t numel, size_t size);
/// An npz of one member arr_0.npy.
enum class Packing { Stored, Deflated };
std::string npz_archive(const std::string& npy, Packing packing);

/// zlib's deflate with its window bits: 31 gzip, 15 zlib, -15 raw.
std::string deflated(const std::string& bytes, int window);
/// A header of `size` bytes of `name`, its checksum right.
std::string tar_header(const std::string& name, char type, uint64_t size);
/// A TFRecord around an event.
std::string event_record(const std::string& event);

struct PngForm {
  uint32_t width = 5, height = 4;
  int depth = 8;
  int color = 2;  // PNG's colour type: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGB and alpha
  int interlace = 0;
  std::string chunks = "";  // before the pixels
};
std::string png_chunk(const std::string& type, const std::string& data);
/// `rows`: the filtered pixels; empty: enough bytes of 0 to 3 for the form.
std::string png_file(const PngForm& form, std::string rows = "");
std::string big_endian(uint64_t value, int bytes);

struct JpegForm {
  int side = 9;
  int channels = 3;
  bool progressive = false;
  bool arithmetic = false;
  int restart_interval = 0;
  bool full_chroma = false;
  bool flat = false;  // of one colour
};
std::string jpeg_file(const JpegForm& form);

}  // namespace dydit::fuzz
