// Event files by hand. A record: length u64, masked CRC of the length, the event, masked CRC of the event. An
// event: TensorFlow's event.proto and summary.proto, of which a handful of fields are written and two read.
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

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kFileVersion = "brain.Event:2";
constexpr std::string_view kFilePrefix = "events.out.tfevents.";
constexpr size_t kHeadBytes = 12;  // length and its checksum
constexpr size_t kTailBytes = 4;   // checksum of the event

// Protobuf: a field is opened by number << 3 | wire type.
enum Wire : uint64_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
// event.proto
constexpr uint64_t kEventWallTime = 1, kEventStep = 2, kEventFileVersion = 3, kEventSummary = 5;
// summary.proto
constexpr uint64_t kSummaryValue = 1, kValueTag = 1, kValueSimple = 2, kValueImage = 4;
constexpr uint64_t kImageHeight = 1, kImageWidth = 2, kImageColorspace = 3, kImageBytes = 4;

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

// A checksum of bytes that hold checksums is weak; TFRecord rotates and shifts it.
uint32_t masked_crc(std::span<const std::byte> bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

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
  switch (std::to_integer<int>(png[25])) {
    case 0:
      return 1;
    case 4:
      return 2;
    case 6:
      return 4;
    default:
      return 3;
  }
}

std::optional<uint64_t> take_varint(std::span<const std::byte>& bytes) {
  uint64_t value = 0;
  for (int shift = 0; shift < 70 && !bytes.empty(); shift += 7) {
    const auto byte = std::to_integer<uint64_t>(bytes[0]);
    bytes = bytes.subspan(1);
    if (shift < 64) value |= (byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  return std::nullopt;
}

// The step of an event (0 when it says none, as protobuf has it); nothing when it is no event.
std::optional<int64_t> event_step(std::span<const std::byte> event) {
  int64_t step = 0;
  while (!event.empty()) {
    const std::optional<uint64_t> key = take_varint(event);
    if (!key) return std::nullopt;
    uint64_t skipped = 0;
    switch (*key & 7) {
      case kVarint: {
        const std::optional<uint64_t> value = take_varint(event);
        if (!value) return std::nullopt;
        if (*key >> 3 == kEventStep) step = static_cast<int64_t>(*value);
        break;
      }
      case kFixed64:
        skipped = 8;
        break;
      case kFixed32:
        skipped = 4;
        break;
      case kBytes: {
        const std::optional<uint64_t> length = take_varint(event);
        if (!length) return std::nullopt;
        skipped = *length;
        break;
      }
      default:
        return std::nullopt;
    }
    if (skipped > event.size()) return std::nullopt;
    event = event.subspan(skipped);
  }
  return step;
}

// The whole record at the start of `rest`; nothing when it is cut or its checksums are wrong.
std::optional<std::span<const std::byte>> whole_record(std::span<const std::byte> rest) {
  if (rest.size() < kHeadBytes + kTailBytes) return std::nullopt;
  if (masked_crc(rest.first(8)) != load_little<uint32_t>(rest.data() + 8)) return std::nullopt;
  const auto length = load_little<uint64_t>(rest.data());
  if (length > rest.size() - kHeadBytes - kTailBytes) return std::nullopt;
  const auto event = rest.subspan(kHeadBytes, length);
  const auto crc = load_little<uint32_t>(rest.data() + kHeadBytes + length);
  if (masked_crc(event) != crc) return std::nullopt;
  return rest.first(kHeadBytes + length + kTailBytes);
}

// A record that was being written when its process died: it reaches past the end, or is the last and wrong,
// or the file system left zeros.
bool is_cut(std::span<const std::byte> rest) {
  if (rest.size() < kHeadBytes) return true;
  if (std::all_of(rest.begin(), rest.end(), [](std::byte b) { return b == std::byte{0}; })) return true;
  if (masked_crc(rest.first(8)) != load_little<uint32_t>(rest.data() + 8)) return false;
  const auto length = load_little<uint64_t>(rest.data());
  const size_t left = rest.size() - kHeadBytes;
  return left < kTailBytes || length >= left - kTailBytes;
}

}  // namespace

uint32_t crc32c(std::span<const std::byte> bytes) {
  uint32_t crc = ~0u;
  for (const std::byte byte : bytes)
    crc = (crc >> 8) ^ kCrcTable[(crc ^ std::to_integer<uint32_t>(byte)) & 0xFF];
  return ~crc;
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
  put_bytes(picture, kImageBytes, {reinterpret_cast<const char*>(png.data()), png.size()});
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
  out.append(reinterpret_cast<const char*>(event.data()), event.size());
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
  for (std::span<const std::byte> rest = bytes; !rest.empty();) {
    const size_t at = bytes.size() - rest.size();
    const std::optional<std::span<const std::byte>> record = whole_record(rest);
    if (!record) {
      DYDIT_CHECK(is_cut(rest), "{}: {}", name,
                  at == 0 ? "is not an event file; move it out of the folder"
                          : fmt::format("damaged event file at byte {} of {}; move it out of the folder", at,
                                        bytes.size()));
      break;
    }
    const std::optional<int64_t> step =
        event_step(record->subspan(kHeadBytes, record->size() - kHeadBytes - kTailBytes));
    DYDIT_CHECK(step, "{}: the record at byte {} is no event; move the file out of the folder", name, at);
    if (*step <= last_step) kept.append(reinterpret_cast<const char*>(record->data()), record->size());
    rest = rest.subspan(record->size());
  }
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
    if (kept.size() == file->bytes().size()) continue;
    OutputFile output(path);
    output.write(kept);
    output.commit();
  }
}

}  // namespace dydit
