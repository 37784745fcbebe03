// npy by numpy's format.py: magic, version, length, and a Python dict that is read with a few fixed forms
// rather than a parser of Python.
#include "dydit/io/npz_reader.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/tensor_view.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::string_view kSuffix = ".npy";
constexpr uint16_t kStored = 0, kDeflated = 8;
// Each header that is listed may have to be unpacked; numpy's own have 128 bytes.
constexpr size_t kMaxHeaderBytes = 4096;
constexpr size_t kMaxTypeBytes = 64;
constexpr size_t kMaxListed = 4096;
constexpr int64_t kMaxClasses = 65536;

void skip_blanks(std::string_view& text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \n"), text.size()));
}

bool skip(std::string_view& text, std::string_view token) {
  skip_blanks(text);
  if (!text.starts_with(token)) return false;
  text.remove_prefix(token.size());
  return true;
}

class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& what) : rest_(text), what_(what) {}

  /// {'descr': '<i8', 'fortran_order': False, 'shape': (3,), }
  NpyHeader parse() {
    NpyHeader header;
    bool has_type = false, has_shape = false;
    expect("{");
    while (!skip(rest_, "}")) {
      const std::string_view key = string();
      expect(":");
      if (key == "descr") {
        header.type = type();
        has_type = true;
      } else if (key == "fortran_order") {
        header.fortran_order = skip(rest_, "True");
        if (!header.fortran_order) expect("False");
      } else if (key == "shape") {
        header.shape = shape();
        has_shape = true;
      } else {
        wrong(fmt::format("unknown key {}", quote(key)));
      }
      skip(rest_, ",");
    }
    if (!has_type || !has_shape) wrong("no type or no shape");
    return header;
  }

 private:
  [[noreturn]] void wrong(const std::string& detail) const {
    throw Error(fmt::format("{}: damaged npy header: {}. Save it again with numpy.savez.", what_, detail));
  }

  void expect(std::string_view token) {
    if (!skip(rest_, token)) wrong(fmt::format("{} is missing at {}", quote(token), quote(rest_)));
  }

  std::string_view string() {
    skip_blanks(rest_);
    const char mark = rest_.empty() ? '\0' : rest_[0];
    const size_t end = mark == '\'' || mark == '"' ? rest_.find(mark, 1) : rest_.npos;
    if (end == rest_.npos) wrong(fmt::format("a text in quotes is missing at {}", quote(rest_)));
    const std::string_view text = rest_.substr(1, end - 1);
    rest_.remove_prefix(end + 1);
    return text;
  }

  std::string type() {
    DYDIT_CHECK(!skip(rest_, "["), "{}: is a table of several types; save each column as an array", what_);
    const std::string_view text = string();
    if (text.size() > kMaxTypeBytes) wrong(fmt::format("a type of {} characters", text.size()));
    return std::string(text);
  }

  std::vector<int64_t> shape() {
    std::vector<int64_t> sizes;
    expect("(");
    while (!skip(rest_, ")")) {
      if (sizes.size() == kMaxRank) wrong("too many dimensions");
      sizes.push_back(size());
      if (!skip(rest_, ",")) {
        expect(")");
        break;
      }
    }
    return sizes;
  }

  int64_t size() {
    skip_blanks(rest_);
    const size_t length = std::min(rest_.find_first_not_of("0123456789"), rest_.size());
    if (length == 0 || length > 18) wrong(fmt::format("a size is missing at {}", quote(rest_)));
    int64_t value = 0;
    for (const char c : rest_.substr(0, length)) value = value * 10 + (c - '0');
    rest_.remove_prefix(length);
    return value;
  }

  std::string_view rest_;
  const std::string& what_;
};

// "|u1", "<f8" and the like: numbers that are read.
bool is_plain(std::string_view type) {
  return type.size() == 3 && std::string_view("|<").find(type[0]) != type.npos &&
         std::string_view("biuf").find(type[1]) != type.npos &&
         std::string_view("1248").find(type[2]) != type.npos;
}

// `data_bytes` follow the header.
void check_size(const NpyHeader& header, uint64_t data_bytes, const std::string& what) {
  const int item_size = header.type[2] - '0';
  const std::optional<int64_t> count = checked_numel(header.shape);
  DYDIT_CHECK(count && *count <= std::numeric_limits<int64_t>::max() / item_size &&
                  static_cast<uint64_t>(*count * item_size) == data_bytes,
              "{}: shape {} of {}-byte numbers does not fit its {} bytes. Fetch it again.", what,
              shape_text(header.shape), item_size, data_bytes);
}

void check_method(const ZipArchive::Packed& member, const std::string& what) {
  DYDIT_CHECK(member.method == kStored || member.method == kDeflated,
              "{}: zip method {} is not known; save it with numpy.savez", what, member.method);
  DYDIT_CHECK(member.method == kDeflated || member.size == member.bytes.size(),
              "{}: damaged: two sizes, {} and {}. Fetch it again.", what, member.size, member.bytes.size());
}

std::string array_of(const std::string& file, std::string_view array) {
  return fmt::format("{}: array {}", file, quote(array));
}

}  // namespace

bool is_npy(std::span<const std::byte> bytes) { return text_of(bytes).starts_with(kMagic); }

NpyHeader parse_npy_header(std::span<const std::byte> bytes, const std::string& what) {
  const std::string_view text = text_of(bytes);
  DYDIT_CHECK(is_npy(bytes) && text.size() >= 12, "{}: is not in numpy's npy format", what);
  const char version = text[6];
  DYDIT_CHECK(version >= 1 && version <= 3, "{}: npy version {} is not known; 1 to 3 are", what,
              int{version});
  const size_t start = version == 1 ? 10 : 12;
  const size_t length =
      version == 1 ? load_little<uint16_t>(bytes.data() + 8) : load_little<uint32_t>(bytes.data() + 8);
  DYDIT_CHECK(length <= kMaxHeaderBytes, "{}: its npy header has {} bytes; at most {} are read", what, length,
              kMaxHeaderBytes);
  DYDIT_CHECK(length <= text.size() - start, "{}: its npy header of {} bytes passes the end. Fetch it again.",
              what, length);
  NpyHeader header = HeaderParser(text.substr(start, length), what).parse();
  header.bytes = start + length;
  return header;
}

NpyArray parse_npy(std::span<const std::byte> bytes, const std::string& what) {
  NpyHeader header = parse_npy_header(bytes, what);
  DYDIT_CHECK(!header.fortran_order, "{}: is in Fortran order; save numpy.ascontiguousarray of it", what);
  DYDIT_CHECK(is_plain(header.type),
              "{}: has the numpy type {}; little-endian numbers of 1 to 8 bytes are wanted", what,
              quote(header.type));
  const std::span<const std::byte> data = bytes.subspan(header.bytes);
  check_size(header, data.size(), what);
  return {.kind = header.type[1],
          .item_size = header.type[2] - '0',
          .shape = std::move(header.shape),
          .data = data,
          .unpacked = nullptr};
}

std::optional<NpyArray> read_npz_array(const ZipArchive& archive, std::string_view array, uint64_t max_bytes,
                                       const std::string& file) {
  const std::optional<ZipArchive::Packed> member = archive.find_packed(fmt::format("{}{}", array, kSuffix));
  if (!member) return std::nullopt;
  const std::string what = array_of(file, array);
  check_method(*member, what);
  if (member->method == kStored) return parse_npy(member->bytes, what);
  DYDIT_CHECK(member->size <= max_bytes, "{}: unpacks to {} bytes, more than {}; save it with numpy.savez",
              what, member->size, max_bytes);
  const auto unpacked =
      std::make_shared<const Buffer>(inflate_raw(member->bytes, member->size, member->crc, what));
  NpyArray result = parse_npy(unpacked->bytes(), what);
  result.unpacked = unpacked;
  return result;
}

std::vector<NpzEntry> list_npz(const ZipArchive& archive, const std::string& file) {
  std::vector<NpzEntry> entries;
  for (const std::string_view member_name : archive.names()) {
    if (!member_name.ends_with(kSuffix)) continue;
    DYDIT_CHECK(entries.size() < kMaxListed, "{}: has more than {} arrays; save them in several files", file,
                kMaxListed);
    const std::string_view name = member_name.substr(0, member_name.size() - kSuffix.size());
    const std::string what = array_of(file, name);
    const ZipArchive::Packed member = *archive.find_packed(member_name);
    check_method(member, what);
    Buffer start;
    if (member.method == kDeflated) start = inflate_start(member.bytes, kMaxHeaderBytes + 12, what);
    NpzEntry entry{std::string(name),
                   parse_npy_header(member.method == kStored ? member.bytes : start.bytes(), what)};
    DYDIT_CHECK(entry.header.bytes <= member.size,
                "{}: damaged: {} bytes are less than its header. Fetch it again.", what, member.size);
    if (is_plain(entry.header.type)) check_size(entry.header, member.size - entry.header.bytes, what);
    entries.push_back(std::move(entry));
  }
  return entries;
}

std::string npy_type_name(const std::string& type) {
  if (!is_plain(type)) return type;
  if (type[1] == 'b') return "bool";
  const std::string_view kind = type[1] == 'f' ? "float" : type[1] == 'i' ? "int" : "uint";
  return fmt::format("{}{}", kind, 8 * (type[2] - '0'));
}

int64_t integer_at(const NpyArray& array, size_t index) {
  const auto size = static_cast<size_t>(array.item_size);
  int64_t value = 0;
  std::memcpy(&value, array.data.data() + index * size, size);
  const int unused = 64 - 8 * array.item_size;
  if (array.kind == 'i') return static_cast<int64_t>(static_cast<uint64_t>(value) << unused) >> unused;
  return value;
}

std::optional<LabelSummary> summarize_labels(const NpyArray& labels) {
  if (labels.kind == 'f' || labels.shape.size() != 1 || labels.shape[0] == 0) return std::nullopt;
  std::vector<bool> seen(kMaxClasses);
  for (int64_t i = 0; i < labels.shape[0]; ++i) {
    const int64_t label = integer_at(labels, static_cast<size_t>(i));
    if (label < 0 || label >= kMaxClasses) return std::nullopt;
    seen[static_cast<size_t>(label)] = true;
  }
  const auto first = std::find(seen.begin(), seen.end(), true);
  const auto last = std::find(seen.rbegin(), seen.rend(), true);
  return LabelSummary{.count = labels.shape[0],
                      .num_classes = static_cast<int>(std::count(seen.begin(), seen.end(), true)),
                      .lowest = static_cast<int>(first - seen.begin()),
                      .highest = static_cast<int>(seen.rend() - last) - 1};
}

}  // namespace dydit
