// Event files by hand; tfevents_format.h says what a record is.
#include "dydit/io/tfevents.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <fcntl.h>
#include <optional>
#include <string_view>
#include <unistd.h>
#include <vector>

#include <fmt/format.h>
#include <system_error>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/tfevents_format.h"
#include "dydit/io/tfevents_reader.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using namespace tfevents;

constexpr std::string_view kFileVersion = "brain.Event:2";
constexpr std::string_view kFilePrefix = "events.out.tfevents.";

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0u);
    table[i] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void put_number(std::string& out, uint64_t field, uint64_t value) {
  put_varint(out, field << 3 | kVarint);
  put_varint(out, value);
}

void put_bytes(std::string& out, uint64_t field, std::string_view bytes) {
  put_varint(out, field << 3 | kBytes);
  put_varint(out, bytes.size());
  out += bytes;
}

// An event that so far says only when.
std::string new_event() {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  std::string event;
  put_varint(event, kEventWallTime << 3 | kFixed64);
  append_little(event, std::bit_cast<uint64_t>(now.count()));
  return event;
}

// Summary.Image.colorspace counts channels; a PNG's header has its colour type at byte 25.
uint64_t colorspace(std::span<const std::byte> png) {
  const auto type = std::to_integer<int>(png[25]);
  return type == 0 ? 1 : type == 4 ? 2 : type == 6 ? 4 : 3;
}

}  // namespace

uint32_t crc32c(std::span<const std::byte> bytes) {
  uint32_t crc = ~0u;
  for (const std::byte byte : bytes)
    crc = (crc >> 8) ^ kCrcTable[(crc ^ std::to_integer<uint32_t>(byte)) & 0xFF];
  return ~crc;
}

uint32_t tfevents::masked_crc(std::span<const std::byte> bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

EventWriter::EventWriter(fs::path folder) : folder_(std::move(folder)) {}

EventWriter::~EventWriter() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void EventWriter::create() {
  std::error_code error;
  fs::create_directories(folder_, error);
  DYDIT_CHECK(!error, "{}: cannot make the folder: {}", folder_.string(), error.message());
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host[0] = '\0';
  std::string base = fmt::format("{}{}.{}.{}", kFilePrefix, std::time(nullptr), host.data(), ::getpid());
  std::replace(base.begin(), base.end(), '/', '_');
  for (int n = 0; descriptor_ < 0; ++n) {
    path_ = folder_ / (n == 0 ? base : fmt::format("{}.{}", base, n));
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
    DYDIT_CHECK(descriptor_ >= 0 || errno == EEXIST, "{}: cannot write: {}", path_.string(),
                std::generic_category().message(errno));
  }
  std::string version = new_event();
  put_bytes(version, kEventFileVersion, kFileVersion);
  record(bytes_of(version));
}

void EventWriter::scalar(const std::string& tag, int64_t step, float number) {
  std::string out;
  put_bytes(out, kValueTag, tag);
  put_varint(out, kValueSimple << 3 | kFixed32);
  append_little(out, std::bit_cast<uint32_t>(number));
  value(step, out);
}

void EventWriter::image(const std::string& tag, int64_t step, int width, int height,
                        std::span<const std::byte> png) {
  DYDIT_CHECK(sniff_file_kind(png) == FileKind::Png && png.size() > 25 && width > 0 && height > 0,
              "{}: image {} of step {} is {} bytes that are no PNG, or has no pixels ({}x{})",
              folder_.string(), tag, step, png.size(), width, height);
  std::string picture;
  put_number(picture, kImageHeight, static_cast<uint64_t>(height));
  put_number(picture, kImageWidth, static_cast<uint64_t>(width));
  put_number(picture, kImageColorspace, colorspace(png));
  put_bytes(picture, kImageBytes, text_of(png));
  std::string out;
  put_bytes(out, kValueTag, tag);
  put_bytes(out, kValueImage, picture);
  value(step, out);
}

void EventWriter::value(int64_t step, const std::string& value) {
  if (descriptor_ < 0) create();
  std::string summary;
  put_bytes(summary, kSummaryValue, value);
  std::string event = new_event();
  put_number(event, kEventStep, static_cast<uint64_t>(step));
  put_bytes(event, kEventSummary, summary);
  record(bytes_of(event));
}

void EventWriter::record(std::span<const std::byte> event) {
  std::string out;
  append_little<uint64_t>(out, event.size());
  append_little(out, masked_crc(bytes_of(out)));
  out += text_of(event);
  append_little(out, masked_crc(event));
  for (std::string_view rest = out; !rest.empty();) {
    const ssize_t written = ::write(descriptor_, rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    DYDIT_CHECK(written >= 0, "{}: cannot write: {}", path_.string(), std::generic_category().message(errno));
    rest.remove_prefix(static_cast<size_t>(written));
  }
}

std::string kept_events(std::span<const std::byte> bytes, int64_t last_step, const std::string& name) {
  std::string kept;
  for_each_event(bytes, name, [&](const Event& event) {
    if (event.step <= last_step) kept += text_of(event.record);
  });
  return kept;
}

void truncate_events(const fs::path& folder, int64_t last_step) {
  if (!fs::is_directory(folder)) return;
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const bool events = entry.path().filename().string().starts_with(kFilePrefix);
    if (events && entry.is_regular_file() && entry.file_size() > 0) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  for (const fs::path& path : files) {
    const auto file = MappedFile::open(path);
    const std::string kept = kept_events(file->bytes(), last_step, path.string());
    if (kept.size() != file->bytes().size()) write_output_file(path, kept);
  }
}

}  // namespace dydit
