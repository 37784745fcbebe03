// Deflated bytes unpacked into memory: a whole gzip file, or the raw stream of a zip member.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>

namespace dydit {

/// Bytes on the heap, not zeroed first.
struct Buffer {
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  std::unique_ptr<std::byte[], Free> data;
  size_t size = 0;

  std::span<const std::byte> bytes() const { return {data.get(), size}; }
};

/// True when the first bytes are gzip's.
bool is_gzip(std::span<const std::byte> bytes);

/// Unpacks a gzip file, all members of it. Throws Error (names the file) when it is damaged, cut short or
/// unpacks to more than `max_bytes`.
Buffer gunzip(std::span<const std::byte> bytes, const std::string& name, uint64_t max_bytes);

/// Unpacks a raw deflate stream that gives exactly `size` bytes with the checksum `crc`; `what` names it in
/// the Error. The caller has judged `size`.
Buffer inflate_raw(std::span<const std::byte> bytes, uint64_t size, uint32_t crc, const std::string& what);

/// The first `size` bytes that a raw deflate stream unpacks to, or all of it when there are fewer; `what`
/// names it in the Error.
Buffer inflate_start(std::span<const std::byte> bytes, size_t size, const std::string& what);

}  // namespace dydit
