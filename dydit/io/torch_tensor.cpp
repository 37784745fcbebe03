// torch/_utils.py, _rebuild_tensor_v2: storage, offset, sizes, strides, all of which are claims to be
// checked.
#include "dydit/io/torch_tensor.h"

#include <algorithm>
#include <optional>

#include "dydit/base/error.h"

namespace dydit {
namespace {

constexpr const char* kWayOut = "The file is damaged; fetch or save it again.";
constexpr size_t kMaxKeyBytes = 255;  // torch writes a number

// One tensor or storage while it is read.
class Reader {
 public:
  Reader(const Pickle& pickle, const std::string& label, const std::string& file)
      : pickle_(pickle), label_(label), file_(file) {}

  std::vector<PickleIndex> tuple(PickleIndex index, size_t least, size_t most) const {
    const PickleValue& value = pickle_[index];
    const bool is_sequence = value.kind == PickleKind::Tuple || value.kind == PickleKind::List;
    DYDIT_CHECK(is_sequence && value.item_count >= least && value.item_count <= most,
                "{}: {}: a tuple of {} to {} values wanted, got a {} of {}. {}", file_, label_, least, most,
                pickle_.describe(index), value.item_count, kWayOut);
    return pickle_.items_of(index);
  }

  int64_t integer(PickleIndex index) const {
    const PickleValue& value = pickle_[index];
    DYDIT_CHECK(value.kind == PickleKind::Int,
                "{}: {}: a whole number wanted for its offset, sizes and strides, got a {}. {}", file_,
                label_, pickle_.describe(index), kWayOut);
    DYDIT_CHECK(value.integer >= 0, "{}: {}: its offset, sizes and strides must not be negative, got {}. {}",
                file_, label_, value.integer, kWayOut);
    return value.integer;
  }

  std::vector<int64_t> sizes(PickleIndex index) const {
    std::vector<int64_t> result;
    for (PickleIndex item : tuple(index, 0, kMaxRank)) result.push_back(integer(item));
    return result;
  }

  TorchStorageId storage_id(PickleIndex index) const {
    DYDIT_CHECK(pickle_[index].kind == PickleKind::Persistent, "{}: {}: a storage wanted, got a {}. {}",
                file_, label_, pickle_.describe(index), kWayOut);
    const std::vector<PickleIndex> id = tuple(pickle_[index].argument, 5, 6);
    const PickleValue& key = pickle_[id[2]];
    DYDIT_CHECK(pickle_[id[0]].text() == "storage" && key.kind == PickleKind::String &&
                    key.text().size() <= kMaxKeyBytes,
                "{}: {}: its persistent id is not that of a storage. {}", file_, label_, kWayOut);
    TorchStorageId storage{key.text(), storage_dtype(id[1]), integer(id[4])};
    storage.view_numel = storage.numel;
    if (id.size() == 6 && pickle_[id[5]].kind != PickleKind::None) {
      const std::vector<PickleIndex> view = tuple(id[5], 3, 3);
      storage.view_offset = integer(view[1]);
      storage.view_numel = integer(view[2]);
      DYDIT_CHECK(
          storage.view_offset <= storage.numel && storage.view_numel <= storage.numel - storage.view_offset,
          "{}: {}: a view of {} elements from {} passes the end of its storage of {}. {}", file_, label_,
          storage.view_numel, storage.view_offset, storage.numel, kWayOut);
    }
    return storage;
  }

  void check_bounds(const TensorView& view, int64_t offset, int64_t numel) const {
    const std::optional<int64_t> wanted = checked_numel(view.shape);
    // More elements than the storage has are possible with stride 0, but whoever copies them would run out of
    // memory; weights have no such views.
    DYDIT_CHECK(wanted && *wanted <= numel,
                "{}: {} of shape {} has more elements than its storage, which has {}. {}", file_, label_,
                shape_text(view.shape), numel, kWayOut);
    if (*wanted == 0) return;
    int64_t last = offset;
    bool overflow = false;
    for (size_t i = 0; i < view.shape.size(); ++i) {
      int64_t reach = 0;
      overflow = overflow || __builtin_mul_overflow(view.shape[i] - 1, view.strides[i], &reach) ||
                 __builtin_add_overflow(last, reach, &last);
    }
    DYDIT_CHECK(
        !overflow && last < numel,
        "{}: {} of shape {}, strides {} from offset {} passes the end of its storage of {} elements. {}",
        file_, label_, shape_text(view.shape), shape_text(view.strides), offset, numel, kWayOut);
  }

 private:
  Dtype storage_dtype(PickleIndex index) const {
    for (size_t i = 0; i < kTorchStorageNames.size(); ++i) {
      if (pickle_.is_global(index, "torch", kTorchStorageNames[i])) return static_cast<Dtype>(i);
    }
    throw Error(fmt::format(
        "{}: {} is stored as {}, which is not known here. Convert it to float32 and save it again.", file_,
        label_, pickle_.describe(index)));
  }

  const Pickle& pickle_;
  const std::string& label_;
  const std::string& file_;
};

}  // namespace

TorchStorageId read_storage_id(const Pickle& pickle, PickleIndex index, const std::string& label,
                               const std::string& file) {
  return Reader(pickle, label, file).storage_id(index);
}

TensorView read_torch_tensor(const Pickle& pickle, const TorchStorages& storages, PickleIndex index,
                             const std::string& label, const std::string& file) {
  const Reader reader(pickle, label, file);
  // storage, offset, size, stride, requires_grad, backward_hooks and perhaps metadata
  const std::vector<PickleIndex> parts = reader.tuple(pickle[index].argument, 4, 7);
  const TorchStorageId id = reader.storage_id(parts[0]);
  const std::span<const std::byte> bytes = storages.find(id, label);
  const int64_t offset = reader.integer(parts[1]);
  TensorView view{id.dtype, reader.sizes(parts[2]), reader.sizes(parts[3]), nullptr};
  DYDIT_CHECK(view.shape.size() == view.strides.size(), "{}: {} has {} sizes but {} strides. {}", file, label,
              view.shape.size(), view.strides.size(), kWayOut);
  reader.check_bounds(view, offset, id.view_numel);
  // An empty tensor may begin anywhere; it is given the storage's start.
  const bool empty = std::find(view.shape.begin(), view.shape.end(), 0) != view.shape.end();
  const int64_t first = empty ? 0 : id.view_offset + offset;
  view.data = bytes.data() + static_cast<uint64_t>(first) * dtype_size(id.dtype);
  return view;
}

}  // namespace dydit
