// What torch.save writes since 1.6: an uncompressed zip file (ZIP64) of data.pkl, byteorder, version and one
// member a storage. Storages begin at multiples of 64 bytes, as PyTorch wants them for mapping.
#include "dydit/io/torch_writer.h"

#include <bit>
#include <span>
#include <vector>

#include <nlohmann/json.hpp>
#include <zlib.h>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/pickle_opcodes.h"
#include "dydit/io/text.h"
#include "dydit/io/torch_tensor.h"
#include "dydit/io/zip.h"

namespace dydit {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kFolder = "model/";
constexpr size_t kAlignment = 64;
constexpr uint16_t kZipVersion = 45;         // ZIP64 needs 4.5
constexpr uint16_t kDosDate = (1 << 5) | 1;  // 1 January 1980: equal weights make equal files
constexpr uint16_t kExtraPadding = 0x4246;   // torch's own "FB": an extra field of zeros
constexpr uint16_t kExtra64Bytes = 24;       // size, stored size and, in the directory, offset

// A pickle of protocol 2, without a memo: PyTorch reads both.
class PickleWriter {
 public:
  PickleWriter() : out_("\x80\x02") {}

  std::string finish() { return std::move(out_) + static_cast<char>(kStop); }
  void op(Opcode opcode) { out_ += static_cast<char>(opcode); }

  void text(std::string_view text) {
    op(kBinUnicode);
    append_little<uint32_t>(out_, static_cast<uint32_t>(text.size()));
    out_ += text;
  }

  void integer(int64_t value) {
    op(kLong1);
    out_ += static_cast<char>(sizeof(value));
    append_little<int64_t>(out_, value);
  }

  void global(std::string_view module, std::string_view name) {
    op(kGlobal);
    out_.append(module).append("\n").append(name).append("\n");
  }

  void integers(const std::vector<int64_t>& values) {
    op(kMark);
    for (const int64_t value : values) integer(value);
    op(kTuple);
  }

  void empty_ordered_dict() {
    global("collections", "OrderedDict");
    op(kEmptyTuple);
    op(kReduce);
  }

  // _rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())
  void tensor(const TensorView& view, const std::string& key) {
    std::vector<int64_t> strides(view.shape.size(), 1);
    for (size_t i = strides.size(); i-- > 1;) strides[i - 1] = strides[i] * view.shape[i];
    global("torch._utils", "_rebuild_tensor_v2");
    op(kMark);
    op(kMark);
    text("storage");
    global("torch", torch_storage_name(view.dtype));
    text(key);
    text("cpu");
    integer(view.numel());
    op(kTuple);
    op(kBinPersId);
    integer(0);
    integers(view.shape);
    integers(strides);
    op(kNewFalse);
    empty_ordered_dict();
    op(kTuple);
    op(kReduce);
  }

  // Plain values only; the configuration is flat.
  void json(const Json& value) {
    if (value.is_object()) {
      op(kEmptyDict);
      op(kMark);
      for (const auto& [key, item] : value.items()) {
        text(key);
        json(item);
      }
      op(kSetItems);
    } else if (value.is_array()) {
      op(kEmptyList);
      op(kMark);
      for (const Json& item : value) json(item);
      op(kAppends);
    } else if (value.is_string()) {
      text(value.get_ref<const std::string&>());
    } else if (value.is_boolean()) {
      op(value.get<bool>() ? kNewTrue : kNewFalse);
    } else if (value.is_number_integer()) {
      integer(value.get<int64_t>());
    } else if (value.is_number()) {
      op(kBinFloat);
      append_little<uint64_t>(out_, __builtin_bswap64(std::bit_cast<uint64_t>(value.get<double>())));
    } else {
      op(kNone);
    }
  }

 private:
  std::string out_;
};

// Members one after the other, then the directory.
class ZipWriter {
 public:
  explicit ZipWriter(const std::filesystem::path& path) : file_(path) {}

  void add(const std::string& name, std::span<const std::byte> bytes) {
    const Member member{
        std::string(kFolder) + name, bytes.size(),
        static_cast<uint32_t>(crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size())),
        file_.size()};
    std::string header;
    append_little<uint32_t>(header, zip::kLocalHeader);
    append_common(header, member, /*extra=*/0);
    const size_t extra_at = header.size() - 2;
    header += member.name;
    append_extra64(header, member, /*with_offset=*/false);
    // The padding's own head takes four bytes; its content does the rest.
    const size_t begin = file_.size() + header.size() + 4;
    const size_t padding = (kAlignment - begin % kAlignment) % kAlignment;
    append_little<uint16_t>(header, kExtraPadding);
    append_little<uint16_t>(header, static_cast<uint16_t>(padding));
    header.append(padding, '\0');
    const auto extra = static_cast<uint16_t>(4 + kExtra64Bytes - 8 + 4 + padding);
    header[extra_at] = static_cast<char>(extra & 0xFF);
    header[extra_at + 1] = static_cast<char>(extra >> 8);
    file_.write(header);
    file_.write(bytes);
    members_.push_back(member);
  }

  void add(const std::string& name, std::string_view text) {
    add(name, std::as_bytes(std::span(text.data(), text.size())));
  }

  void commit(const std::function<void()>& before) {
    const uint64_t begin = file_.size();
    for (const Member& member : members_) {
      std::string entry;
      append_little<uint32_t>(entry, zip::kDirectoryEntry);
      append_little<uint16_t>(entry, kZipVersion);  // made by
      append_common(entry, member, 4 + kExtra64Bytes);
      entry.append(10, '\0');                          // comment, disk, attributes
      append_little<uint32_t>(entry, zip::kSeeExtra);  // offset
      entry += member.name;
      append_extra64(entry, member, /*with_offset=*/true);
      file_.write(entry);
    }
    file_.write(directory_end(begin, file_.size() - begin));
    if (before) before();
    file_.commit();
  }

 private:
  struct Member {
    std::string name;
    uint64_t size;
    uint32_t crc;
    uint64_t offset;
  };

  // From the version to the length of the extra field.
  static void append_common(std::string& out, const Member& member, uint16_t extra) {
    append_little<uint16_t>(out, kZipVersion);
    append_little<uint16_t>(out, 0);  // flags
    append_little<uint16_t>(out, 0);  // method: stored
    append_little<uint16_t>(out, 0);  // time
    append_little<uint16_t>(out, kDosDate);
    append_little<uint32_t>(out, member.crc);
    append_little<uint32_t>(out, zip::kSeeExtra);  // stored size
    append_little<uint32_t>(out, zip::kSeeExtra);  // size
    append_little<uint16_t>(out, static_cast<uint16_t>(member.name.size()));
    append_little<uint16_t>(out, extra);
  }

  static void append_extra64(std::string& out, const Member& member, bool with_offset) {
    append_little<uint16_t>(out, zip::kExtra64);
    append_little<uint16_t>(out, with_offset ? kExtra64Bytes : kExtra64Bytes - 8);
    append_little<uint64_t>(out, member.size);
    append_little<uint64_t>(out, member.size);
    if (with_offset) append_little<uint64_t>(out, member.offset);
  }

  std::string directory_end(uint64_t offset, uint64_t size) const {
    std::string out;
    append_little<uint32_t>(out, zip::kDirectoryEnd64);
    append_little<uint64_t>(out, zip::kDirectoryEnd64Bytes - 12);
    append_little<uint16_t>(out, kZipVersion);
    append_little<uint16_t>(out, kZipVersion);
    append_little<uint64_t>(out, 0);  // disks
    append_little<uint64_t>(out, members_.size());
    append_little<uint64_t>(out, members_.size());
    append_little<uint64_t>(out, size);
    append_little<uint64_t>(out, offset);
    append_little<uint32_t>(out, zip::kDirectoryLocator64);
    append_little<uint32_t>(out, 0);  // disk
    append_little<uint64_t>(out, offset + size);
    append_little<uint32_t>(out, 1);  // disks
    append_little<uint32_t>(out, zip::kDirectoryEnd);
    append_little<uint32_t>(out, 0);    // disks
    append_little<uint32_t>(out, ~0u);  // members: see above
    append_little<uint32_t>(out, zip::kSeeExtra);
    append_little<uint32_t>(out, zip::kSeeExtra);
    append_little<uint16_t>(out, 0);  // comment
    return out;
  }

  OutputFile file_;
  std::vector<Member> members_;
};

}  // namespace

void write_torch_file(const std::filesystem::path& path, const TensorViews& tensors, const Json& config,
                      const std::map<std::string, std::string>& metadata,
                      const std::function<void()>& before_commit) {
  PickleWriter pickle;
  pickle.op(kEmptyDict);
  pickle.op(kMark);
  pickle.text("ema");
  pickle.empty_ordered_dict();
  pickle.op(kMark);
  size_t count = 0;
  for (const auto& [name, view] : tensors) {
    DYDIT_CHECK(is_contiguous(view), "{}: tensor {} is strided; make it contiguous before writing",
                path.string(), quote(name));
    pickle.text(name);
    pickle.tensor(view, std::to_string(count++));
  }
  pickle.op(kSetItems);
  pickle.text("cfg");
  pickle.json(config);
  pickle.text("metadata");
  pickle.json(Json(metadata));
  pickle.op(kSetItems);

  ZipWriter zip(path);
  zip.add("data.pkl", pickle.finish());
  zip.add("byteorder", "little");
  count = 0;
  for (const auto& [name, view] : tensors) {
    zip.add("data/" + std::to_string(count++),
            {view.data, static_cast<size_t>(view.numel()) * dtype_size(view.dtype)});
  }
  zip.add("version", "3\n");
  zip.commit(before_commit);
}

}  // namespace dydit
