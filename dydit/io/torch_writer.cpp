// What torch.save writes since 1.6: an uncompressed zip file (ZIP64) of data.pkl, byteorder, version and one
// member a storage. Storages begin at multiples of 64 bytes, as PyTorch wants them for mapping.
#include "dydit/io/torch_writer.h"

#include <bit>
#include <span>
#include <vector>

#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/pickle_opcodes.h"
#include "dydit/io/text.h"
#include "dydit/io/torch_tensor.h"
#include "dydit/io/zip_writer.h"

namespace dydit {
namespace {

using Json = nlohmann::json;

const std::string kFolder = "model/";
constexpr size_t kAlignment = 64;

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
    global("torch", kTorchStorageNames[static_cast<size_t>(view.dtype)]);
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

}  // namespace

void write_torch_file(const std::filesystem::path& path, const TensorViews& tensors, const Json& config,
                      const std::map<std::string, std::string>& metadata,
                      const std::function<void()>& before_commit) {
  PickleWriter pickle;
  const bool bare = config.is_null();
  if (!bare) {
    pickle.op(kEmptyDict);
    pickle.op(kMark);
    pickle.text("ema");
  }
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
  if (!bare) {
    pickle.text("cfg");
    pickle.json(config);
    pickle.text("metadata");
    pickle.json(Json(metadata));
    pickle.op(kSetItems);
  }

  ZipWriter zip(path, {.alignment = kAlignment, .directory64 = true});
  zip.add(kFolder + "data.pkl", pickle.finish());
  zip.add(kFolder + "byteorder", "little");
  count = 0;
  for (const auto& [name, view] : tensors) {
    zip.add(fmt::format("{}data/{}", kFolder, count++), std::span(view.data, extent_bytes(view)));
  }
  zip.add(kFolder + "version", "3\n");
  zip.commit(before_commit);
}

}  // namespace dydit
