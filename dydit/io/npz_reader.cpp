// npy by numpy's format.py: magic, version, length, and a Python dict that is read with a few fixed forms
// rather than a parser of Python.
#include "dydit/io/npz_reader.h"

#include <algorithm>
#include <limits>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/tensor_view.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr uint16_t kStored = 0, kDeflated = 8;

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

  /// Fills kind, item_size and shape from {'descr': '<i8', 'fortran_order': False, 'shape': (3,), }
  void parse(NpyArray& array) {
    expect("{");
    while (!skip(rest_, "}")) {
      const std::string_view key = string();
      expect(":");
      if (key == "descr") {
        set_type(array, string());
      } else if (key == "fortran_order") {
        DYDIT_CHECK(!skip(rest_, "True"), "{}: is in Fortran order; save numpy.ascontiguousarray of it",
                    what_);
        expect("False");
      } else if (key == "shape") {
        array.shape = shape();
        has_shape_ = true;
      } else {
        wrong(fmt::format("unknown key {}", quote(key)));
      }
      skip(rest_, ",");
    }
    if (!has_type_ || !has_shape_) wrong("no type or no shape");
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

  void set_type(NpyArray& array, std::string_view descr) {
    const bool known = descr.size() == 3 && std::string_view("|<").find(descr[0]) != descr.npos &&
                       std::string_view("biuf").find(descr[1]) != descr.npos &&
                       std::string_view("1248").find(descr[2]) != descr.npos;
    DYDIT_CHECK(known, "{}: has the numpy type {}; little-endian numbers of 1 to 8 bytes are wanted", what_,
                quote(descr));
    array.kind = descr[1];
    array.item_size = descr[2] - '0';
    has_type_ = true;
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
  bool has_type_ = false, has_shape_ = false;
};

}  // namespace

NpyArray parse_npy(std::span<const std::byte> bytes, const std::string& what) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  DYDIT_CHECK(text.starts_with(kMagic) && text.size() >= 12, "{}: is not in numpy's npy format", what);
  const char version = text[6];
  DYDIT_CHECK(version >= 1 && version <= 3, "{}: npy version {} is not known; 1 to 3 are", what,
              int{version});
  const size_t start = version == 1 ? 10 : 12;
  const size_t length =
      version == 1 ? load_little<uint16_t>(bytes.data() + 8) : load_little<uint32_t>(bytes.data() + 8);
  DYDIT_CHECK(length <= text.size() - start, "{}: its npy header of {} bytes passes the end. Fetch it again.",
              what, length);
  NpyArray array;
  HeaderParser(text.substr(start, length), what).parse(array);
  array.data = bytes.subspan(start + length);
  const std::optional<int64_t> count = checked_numel(array.shape);
  DYDIT_CHECK(count && *count <= std::numeric_limits<int64_t>::max() / array.item_size &&
                  static_cast<uint64_t>(*count * array.item_size) == array.data.size(),
              "{}: shape {} of {}-byte numbers does not fit its {} bytes. Fetch it again.", what,
              shape_text(array.shape), array.item_size, array.data.size());
  return array;
}

std::optional<NpyArray> read_npz_array(const ZipArchive& archive, std::string_view array, uint64_t max_bytes,
                                       const std::string& file) {
  const std::optional<ZipArchive::Packed> member = archive.find_packed(fmt::format("{}.npy", array));
  if (!member) return std::nullopt;
  const std::string what = fmt::format("{}: array {}", file, quote(array));
  if (member->method == kStored) {
    DYDIT_CHECK(member->size == member->bytes.size(), "{}: damaged: two sizes, {} and {}. Fetch it again.",
                what, member->size, member->bytes.size());
    return parse_npy(member->bytes, what);
  }
  DYDIT_CHECK(member->method == kDeflated, "{}: zip method {} is not known; save it with numpy.savez", what,
              member->method);
  DYDIT_CHECK(member->size <= max_bytes, "{}: unpacks to {} bytes, more than {}; save it with numpy.savez",
              what, member->size, max_bytes);
  const auto unpacked =
      std::make_shared<const Buffer>(inflate_raw(member->bytes, member->size, member->crc, what));
  NpyArray result = parse_npy(unpacked->bytes(), what);
  result.unpacked = unpacked;
  return result;
}

}  // namespace dydit
