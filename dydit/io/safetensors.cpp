// safetensors, read with a SAX handler instead of a JSON tree: the header's form is fixed, so each event is
// checked where it comes, duplicate names are seen, and a hostile header costs no more memory than its size.
#include "dydit/io/safetensors.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kMaxEntries = 1 << 16;  // tensors and metadata keys; a large model has some thousands
constexpr size_t kMaxTokenBytes = 4 << 20;
constexpr size_t kLengthBytes = 8;
constexpr const char* kMetadataKey = "__metadata__";
constexpr const char* kWayOut =
    "The file is damaged or was not written by safetensors; fetch or convert it again.";

struct TensorEntry {
  std::optional<Dtype> dtype;
  std::optional<std::vector<int64_t>> shape;
  std::optional<std::vector<uint64_t>> offsets;  // [begin, end) in the data section
};

struct ByteRange {
  uint64_t begin;
  uint64_t end;
  std::string name;
};

// Takes the header's events: {"__metadata__": {text: text}, NAME: {"dtype": text, "shape": [...],
// "data_offsets": [begin, end]}}. Anything else is an Error.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  HeaderReader(const std::string& file, std::span<const std::byte> data) : file_(file), data_(data) {}

  TensorViews tensors;
  std::map<std::string, std::string> metadata;
  std::vector<ByteRange> ranges;

  bool key(std::string& key) override {
    if (where_ == Where::Top) {
      name_ = key;
      DYDIT_CHECK(!tensors.contains(name_), "{}: tensor {} is listed twice. {}", file_, quote(name_),
                  kWayOut);
      DYDIT_CHECK(name_ != kMetadataKey || !seen_metadata_, "{}: {} is listed twice. {}", file_, kMetadataKey,
                  kWayOut);
    } else {
      field_ = key;
      DYDIT_CHECK(where_ != Where::Metadata || !metadata.contains(field_),
                  "{}: metadata {} is listed twice. {}", file_, quote(field_), kWayOut);
    }
    DYDIT_CHECK(tensors.size() + metadata.size() < kMaxEntries, "{}: header lists more than {} entries. {}",
                file_, kMaxEntries, kWayOut);
    return true;
  }

  bool start_object(size_t) override {
    if (where_ == Where::Outside) {
      where_ = Where::Top;
    } else if (where_ == Where::Top && name_ == kMetadataKey) {
      where_ = Where::Metadata;
      seen_metadata_ = true;
    } else if (where_ == Where::Top) {
      where_ = Where::Tensor;
      entry_ = {};
    } else {
      refuse("an object");
    }
    return true;
  }

  bool end_object() override {
    if (where_ == Where::Tensor) finish_tensor();
    where_ = where_ == Where::Top ? Where::Outside : Where::Top;
    return true;
  }

  bool start_array(size_t) override {
    if (where_ == Where::Tensor && field_ == "shape" && !entry_.shape) {
      entry_.shape.emplace();
      where_ = Where::Shape;
    } else if (where_ == Where::Tensor && field_ == "data_offsets" && !entry_.offsets) {
      entry_.offsets.emplace();
      where_ = Where::Offsets;
    } else {
      refuse("an array");
    }
    return true;
  }

  bool end_array() override {
    where_ = Where::Tensor;
    return true;
  }

  bool string(std::string& value) override {
    if (where_ == Where::Metadata) {
      metadata.emplace(field_, std::move(value));
    } else if (where_ == Where::Tensor && field_ == "dtype" && !entry_.dtype) {
      entry_.dtype = dtype_from_name(value);
      DYDIT_CHECK(entry_.dtype,
                  "{}: tensor {} has dtype {}; F64, F32, F16, BF16, I64, I32, I16, I8, U8 and BOOL "
                  "are known. Convert it to one of these.",
                  file_, quote(name_), quote(value));
    } else {
      refuse("a text");
    }
    return true;
  }

  bool number_unsigned(uint64_t value) override {
    if (where_ == Where::Shape) {
      DYDIT_CHECK(entry_.shape->size() < kMaxRank, "{}: tensor {} has more than {} dimensions. {}", file_,
                  quote(name_), kMaxRank, kWayOut);
      DYDIT_CHECK(std::in_range<int64_t>(value), "{}: tensor {} has a size of {}, which is too large. {}",
                  file_, quote(name_), value, kWayOut);
      entry_.shape->push_back(static_cast<int64_t>(value));
    } else if (where_ == Where::Offsets && entry_.offsets->size() < 2) {
      entry_.offsets->push_back(value);
    } else {
      refuse(fmt::format("the number {}", value));
    }
    return true;
  }

  bool number_integer(int64_t value) override { return refuse(fmt::format("the number {}", value)); }
  bool number_float(double value, const std::string&) override {
    return refuse(fmt::format("the number {}", value));
  }
  bool boolean(bool) override { return refuse("a boolean"); }
  bool null() override { return refuse("null"); }
  bool binary(Json::binary_t&) override { return refuse("binary data"); }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    throw Error(fmt::format("{}: header is not valid JSON at its byte {}. {}", file_, position, kWayOut));
  }

 private:
  enum class Where { Outside, Top, Metadata, Tensor, Shape, Offsets };

  bool refuse(const std::string& what) {
    const char* wanted = "one JSON object is wanted";
    if (where_ == Where::Metadata) wanted = "metadata values must be text";
    if (where_ == Where::Top) wanted = "a tensor must be an object";
    if (where_ == Where::Tensor) wanted = "a tensor has dtype, shape and data_offsets, once each";
    if (where_ == Where::Shape) wanted = "sizes must be whole numbers from 0";
    if (where_ == Where::Offsets) wanted = "data_offsets must be two whole numbers from 0";
    const bool inside = where_ == Where::Metadata || where_ == Where::Tensor;
    const std::string place = inside ? quote(name_) + " " + quote(field_) : quote(name_);
    throw Error(fmt::format("{}: header has {} at {}: {}. {}", file_, what, place, wanted, kWayOut));
  }

  void finish_tensor() {
    DYDIT_CHECK(entry_.dtype && entry_.shape && entry_.offsets && entry_.offsets->size() == 2,
                "{}: tensor {} lacks its {}. {}", file_, quote(name_),
                !entry_.dtype   ? "dtype"
                : !entry_.shape ? "shape"
                                : "data_offsets [begin, end]",
                kWayOut);
    const auto [begin, end] = std::pair((*entry_.offsets)[0], (*entry_.offsets)[1]);
    DYDIT_CHECK(begin <= end && end <= data_.size(),
                "{}: tensor {} lies at bytes {} to {}, but the file has {} bytes of data. {}", file_,
                quote(name_), begin, end, data_.size(), kWayOut);
    const std::optional<int64_t> numel = checked_numel(*entry_.shape);
    uint64_t wanted = 0;
    const bool fits =
        numel && !__builtin_mul_overflow(static_cast<uint64_t>(*numel), dtype_size(*entry_.dtype), &wanted);
    DYDIT_CHECK(fits, "{}: tensor {} of shape {} has more elements than can be counted. {}", file_,
                quote(name_), shape_text(*entry_.shape), kWayOut);
    DYDIT_CHECK(end - begin == wanted, "{}: tensor {} has {} bytes, but {} of shape {} takes {}. {}", file_,
                quote(name_), end - begin, dtype_name(*entry_.dtype), shape_text(*entry_.shape), wanted,
                kWayOut);
    ranges.push_back({begin, end, name_});
    tensors.emplace(name_, TensorView{*entry_.dtype, *std::move(entry_.shape), {}, data_.data() + begin});
  }

  const std::string& file_;
  std::span<const std::byte> data_;
  Where where_ = Where::Outside;
  bool seen_metadata_ = false;
  std::string name_;
  std::string field_;
  TensorEntry entry_;
};

// The tensors must tile the data section: bytes that belong to none or to two could hide something.
void check_tiling(std::vector<ByteRange>& ranges, uint64_t data_size, const std::string& file) {
  std::sort(ranges.begin(), ranges.end(), [](const ByteRange& a, const ByteRange& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t reached = 0;
  for (const ByteRange& range : ranges) {
    DYDIT_CHECK(range.begin >= reached,
                "{}: tensor {} begins at byte {}, inside the one before, which ends at {}. {}", file,
                quote(range.name), range.begin, reached, kWayOut);
    DYDIT_CHECK(range.begin == reached, "{}: bytes {} to {} before tensor {} belong to no tensor. {}", file,
                reached, range.begin, quote(range.name), kWayOut);
    reached = range.end;
  }
  DYDIT_CHECK(reached == data_size, "{}: the tensors end at byte {} of the data, but there are {}. {}", file,
              reached, data_size, kWayOut);
}

// The JSON parser holds a text or number several times over, and its complaint about one unfolds control
// characters to eight bytes each. So both are judged before it sees them.
void check_tokens(std::string_view header, const std::string& file) {
  constexpr std::string_view kBetween = "{}[],: \t\r\n";
  bool in_text = false;
  size_t begin = 0;
  for (size_t i = 0; i < header.size(); ++i) {
    const char c = header[i];
    const bool blank = c == '\t' || c == '\r' || c == '\n';
    DYDIT_CHECK(static_cast<unsigned char>(c) >= 0x20 || (blank && !in_text),
                "{}: header is not valid JSON at its byte {}. {}", file, i + 1, kWayOut);
    DYDIT_CHECK(
        i - begin <= kMaxTokenBytes,
        "{}: header holds a text or number of more than {} bytes at its byte {}; shorten the metadata", file,
        kMaxTokenBytes, begin);
    if (c == '"') {
      in_text = !in_text;
      begin = i;
    } else if (in_text) {
      if (c == '\\') ++i;
    } else if (kBetween.find(c) != kBetween.npos) {
      begin = i;
    }
  }
}

}  // namespace

SafetensorsFile parse_safetensors(std::span<const std::byte> bytes, const std::string& name) {
  DYDIT_CHECK(bytes.size() >= kLengthBytes, "{}: {} bytes are too few for a safetensors file. {}", name,
              bytes.size(), kWayOut);
  const auto length = load_little<uint64_t>(bytes.data());
  DYDIT_CHECK(length <= kMaxHeaderBytes, "{}: claims a header of {} bytes; at most {} are allowed. {}", name,
              length, kMaxHeaderBytes, kWayOut);
  DYDIT_CHECK(length <= bytes.size() - kLengthBytes,
              "{}: claims a header of {} bytes, but only {} follow. {}", name, length,
              bytes.size() - kLengthBytes, kWayOut);
  const std::span<const std::byte> data = bytes.subspan(kLengthBytes + length);
  HeaderReader reader(name, data);
  const std::string_view header = text_of(bytes.subspan(kLengthBytes, length));
  check_tokens(header, name);
  Json::sax_parse(header.begin(), header.end(), &reader);
  check_tiling(reader.ranges, data.size(), name);
  return {std::move(reader.metadata), std::move(reader.tensors), nullptr};
}

SafetensorsFile read_safetensors(const std::filesystem::path& path) {
  std::shared_ptr<const MappedFile> file = MappedFile::open(path);
  SafetensorsFile result = parse_safetensors(file->bytes(), path.string());
  result.file = std::move(file);
  return result;
}

void write_safetensors(const std::filesystem::path& path, const TensorViews& tensors,
                       const std::map<std::string, std::string>& metadata, Durability durability,
                       const std::function<void()>& before_commit) {
  // Wide dtypes first, then by name: every tensor is then aligned to its element.
  std::vector<const TensorViews::value_type*> order;
  for (const auto& entry : tensors) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return dtype_size(a->second.dtype) > dtype_size(b->second.dtype);
  });

  Json header = Json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  std::vector<std::span<const std::byte>> contents;
  uint64_t end = 0;
  for (const auto* entry : order) {
    const auto& [name, tensor] = *entry;
    DYDIT_CHECK(name != kMetadataKey, "{}: no tensor may be named {}; rename it", path.string(),
                kMetadataKey);
    DYDIT_CHECK(is_contiguous(tensor), "{}: tensor {} is strided; make it contiguous before writing",
                path.string(), quote(name));
    const uint64_t begin = end;
    end += extent_bytes(tensor);
    header[name] = {
        {"dtype", dtype_name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
    contents.emplace_back(tensor.data, end - begin);
  }

  std::string text;
  try {
    text = header.dump();
  } catch (const Json::exception&) {
    throw Error(fmt::format(
        "{}: a tensor's name or the metadata is not UTF-8; safetensors allows no other text", path.string()));
  }
  text.append((kLengthBytes - text.size() % kLengthBytes) % kLengthBytes, ' ');
  DYDIT_CHECK(text.size() <= kMaxHeaderBytes,
              "{}: header of {} bytes; at most {} are allowed. Shorten the metadata.", path.string(),
              text.size(), kMaxHeaderBytes);
  std::string length;
  append_little<uint64_t>(length, text.size());
  OutputFile file(path);
  file.write(length + text);
  for (const std::span<const std::byte> bytes : contents) file.write(bytes);
  if (before_commit) before_commit();
  file.commit(durability);
}

}  // namespace dydit
