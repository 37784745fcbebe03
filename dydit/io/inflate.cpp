// zlib over whole buffers. The room for the output starts at what the input can honestly need and grows by
// doubling, so that a length claimed in a file is never allocated on its word alone.
#include "dydit/io/inflate.h"

#include <algorithm>
#include <limits>
#include <new>
#include <string_view>

#include <zlib.h>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"

namespace dydit {
namespace {

constexpr int kGzipWindow = 15 + 16;  // zlib: largest window, gzip framing
constexpr int kRawWindow = -15;
constexpr uint64_t kMaxRatio = 1032;  // deflate cannot do better
constexpr size_t kFirstRoom = 1 << 16;

void resize(Buffer& buffer, size_t size) {
  void* data = std::realloc(buffer.data.get(), std::max<size_t>(size, 1));
  if (data == nullptr) throw std::bad_alloc();
  (void)buffer.data.release();
  buffer.data.reset(static_cast<std::byte*>(data));
  buffer.size = size;
}

class Inflater {
 public:
  Inflater(std::span<const std::byte> input, int window) : rest_(input) {
    DYDIT_CHECK(inflateInit2(&stream_, window) == Z_OK, "zlib could not be set up; is memory short?");
  }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  /// Unpacks until the output is full, the stream ends (Z_STREAM_END) or nothing moves. Returns bytes
  /// written.
  size_t fill(std::span<std::byte> out) {
    constexpr size_t kMost = std::numeric_limits<uInt>::max();  // zlib counts in 32 bits
    size_t written = 0;
    status_ = Z_OK;
    while (written < out.size() && status_ == Z_OK) {
      const auto in_step = static_cast<uInt>(std::min(rest_.size(), kMost));
      const auto out_step = static_cast<uInt>(std::min(out.size() - written, kMost));
      stream_.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(rest_.data()));
      stream_.avail_in = in_step;
      stream_.next_out = reinterpret_cast<Bytef*>(out.data() + written);
      stream_.avail_out = out_step;
      status_ = inflate(&stream_, Z_NO_FLUSH);
      rest_ = rest_.subspan(in_step - stream_.avail_in);
      written += out_step - stream_.avail_out;
    }
    return written;
  }

  int status() const { return status_; }
  std::span<const std::byte> rest() const { return rest_; }
  bool next_member() { return inflateReset(&stream_) == Z_OK; }
  std::string_view complaint() const {
    if (status_ == Z_BUF_ERROR || status_ == Z_OK) return "it ends too early";
    return stream_.msg == nullptr ? "unreadable" : stream_.msg;
  }

 private:
  z_stream stream_{};
  std::span<const std::byte> rest_;
  int status_ = Z_OK;
};

// gzip closes with the size modulo 2^32: a hint that saves the doubling of an honest file.
size_t first_room(std::span<const std::byte> bytes, uint64_t max_bytes) {
  const uint64_t claimed = bytes.size() < 4 ? 0 : load_little<uint32_t>(bytes.data() + bytes.size() - 4);
  const uint64_t possible = std::min<uint64_t>(max_bytes, bytes.size() * kMaxRatio);
  return std::max<size_t>(kFirstRoom, std::min(claimed, possible) + 1);
}

}  // namespace

bool is_gzip(std::span<const std::byte> bytes) { return text_of(bytes).starts_with("\x1F\x8B\x08"); }

Buffer gunzip(std::span<const std::byte> bytes, const std::string& name, uint64_t max_bytes) {
  Inflater inflater(bytes, kGzipWindow);
  Buffer out;
  resize(out, first_room(bytes, max_bytes));
  size_t size = 0;
  while (true) {
    size += inflater.fill({out.data.get() + size, out.size - size});
    DYDIT_CHECK(size <= max_bytes,
                "{}: unpacks to more than {} bytes; unpack it with gunzip and name the result", name,
                max_bytes);
    if (inflater.status() == Z_STREAM_END) {
      if (all_zero(inflater.rest())) break;  // tapes pad with zeros
      DYDIT_CHECK(is_gzip(inflater.rest()) && inflater.next_member(),
                  "{}: damaged gzip file: other bytes follow its end. Fetch it again.", name);
    } else {
      DYDIT_CHECK(size == out.size, "{}: damaged gzip file: {}. Was the download cut short? Fetch it again.",
                  name, inflater.complaint());
    }
    if (size == out.size) resize(out, static_cast<size_t>(std::min<uint64_t>(out.size * 2, max_bytes + 1)));
  }
  resize(out, size);
  return out;
}

Buffer inflate_raw(std::span<const std::byte> bytes, uint64_t size, uint32_t crc, const std::string& what) {
  DYDIT_CHECK(size / kMaxRatio <= bytes.size(), "{}: claims {} bytes from {} packed ones. Fetch it again.",
              what, size, bytes.size());
  Inflater inflater(bytes, kRawWindow);
  Buffer out;
  resize(out, size + 1);  // one byte of room tells a stream that is too long
  const size_t written = inflater.fill({out.data.get(), out.size});
  DYDIT_CHECK(inflater.status() == Z_STREAM_END && written == size,
              "{}: damaged: unpacks to {} bytes, {} were wanted ({}). Fetch it again.", what, written, size,
              inflater.status() == Z_STREAM_END ? "wrong size" : inflater.complaint());
  resize(out, size);
  const auto found = crc32_z(0, reinterpret_cast<const Bytef*>(out.data.get()), out.size);
  DYDIT_CHECK(found == crc, "{}: damaged: wrong checksum. Fetch it again.", what);
  return out;
}

Buffer inflate_start(std::span<const std::byte> bytes, size_t size, const std::string& what) {
  Inflater inflater(bytes, kRawWindow);
  Buffer out;
  resize(out, size);
  const size_t written = inflater.fill({out.data.get(), size});
  DYDIT_CHECK(written == size || inflater.status() == Z_STREAM_END, "{}: damaged: {}. Fetch it again.", what,
              inflater.complaint());
  resize(out, written);
  return out;
}

}  // namespace dydit
