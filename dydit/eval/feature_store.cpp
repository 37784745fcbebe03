#include "dydit/eval/feature_store.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>

#include <ATen/ATen.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"
#include "dydit/model/recipe.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr const char* kKeyFile = "evaluation.json";
constexpr const char* kPartEnd = ".features";
constexpr int kKeyDepth = 8;

// Of a record's bytes after its own: a record that was cut short or damaged does not count.
uint64_t checksum(std::span<const std::byte> bytes) {
  return fnv1a({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

struct Difference {
  std::string name;
  nlohmann::json there, here;
};

// The first entry that differs, within objects, too.
Difference first_difference(const std::string& name, const nlohmann::json& there,
                            const nlohmann::json& here) {
  if (!there.is_object() || !here.is_object()) return {name, there, here};
  for (const nlohmann::json* side : {&here, &there}) {
    for (const auto& [key, value] : side->items()) {
      const nlohmann::json before = there.value(key, nlohmann::json()),
                           now = here.value(key, nlohmann::json());
      if (before != now) return first_difference(key, before, now);
    }
  }
  return {name, there, here};
}

}  // namespace

// What a record begins with; features, logits and spatial features follow as float32.
struct FeatureStore::Head {
  uint64_t checksum;
  ImageNote image;
};

size_t FeatureStore::record_bytes() const {
  return sizeof(Head) +
         sizeof(float) * (static_cast<size_t>(sizes_.features) + sizes_.logits + sizes_.spatial);
}

FeatureStore::FeatureStore(const FeatureSizes& sizes, fs::path folder, nlohmann::json key, int process)
    : sizes_(sizes), folder_(std::move(folder)), process_(process) {
  if (folder_.empty()) return;
  std::error_code error;
  fs::create_directories(folder_, error);
  DYDIT_CHECK(!error, "{}: cannot be created: {}", folder_.string(), error.message());
  if (process == 0 && !fs::exists(folder_ / kKeyFile)) {
    DYDIT_CHECK(fs::is_empty(folder_), "{}: holds other files than an evaluation's; name a new folder",
                folder_.string());
    write_output_file(folder_ / kKeyFile, key.dump(2) + "\n");
  }
  if (fs::exists(folder_ / kKeyFile)) check_key(key);
  open_own();
}

FeatureStore::~FeatureStore() {
  if (file_ >= 0) close(file_);
}

void FeatureStore::check_key(const nlohmann::json& key) const {
  const fs::path path = folder_ / kKeyFile;
  const nlohmann::json there = read_json(text_of(MappedFile::open(path)->bytes()), kKeyDepth, path.string());
  if (there == key) return;
  const auto [name, before, now] = first_difference("", there, key);
  throw Error(fmt::format(
      "{}: holds features of another evaluation ({} is {} there and {} here); name another folder",
      folder_.string(), name, printable(before.dump(), 60), printable(now.dump(), 60)));
}

// What a killed process left of its last record is cut off.
void FeatureStore::open_own() {
  const fs::path path = folder_ / (std::to_string(process_) + kPartEnd);
  file_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  DYDIT_CHECK(file_ >= 0, "{}: cannot be written: {}", path.string(), std::strerror(errno));
  DYDIT_CHECK(flock(file_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK,
              "{}: another run works there; wait for it or name another folder", folder_.string());
  struct stat state = {};
  const bool known = fstat(file_, &state) == 0;
  const auto whole = static_cast<off_t>(static_cast<size_t>(state.st_size) / record_bytes() * record_bytes());
  DYDIT_CHECK(known && ftruncate(file_, whole) == 0 && lseek(file_, whole, SEEK_SET) == whole,
              "{}: cannot be written: {}", path.string(), std::strerror(errno));
}

// fn(head, its values), unless the record is damaged.
template <typename Fn>
void FeatureStore::visit(std::span<const std::byte> record, const Fn& fn) {
  Head head;
  std::memcpy(&head, record.data(), sizeof(head));
  if (checksum(record.subspan(sizeof(head.checksum))) == head.checksum)
    fn(head, record.subspan(sizeof(Head)));
}

template <typename Fn>
void FeatureStore::for_records(const Fn& fn) const {
  for (const auto& record : memory_) visit(record, fn);
  if (folder_.empty()) return;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) {
    if (entry.path().extension() != kPartEnd || entry.file_size() < record_bytes()) continue;
    const auto file = MappedFile::open(entry.path());
    const auto bytes = file->bytes();
    for (size_t at = 0; at + record_bytes() <= bytes.size(); at += record_bytes())
      visit(bytes.subspan(at, record_bytes()), fn);
  }
}

std::vector<int64_t> FeatureStore::missing(int64_t n) const {
  std::vector<bool> there(static_cast<size_t>(n));
  for_records([&](const Head& head, std::span<const std::byte>) {
    if (head.image.index >= 0 && head.image.index < n) there[static_cast<size_t>(head.image.index)] = true;
  });
  std::vector<int64_t> missing;
  for (int64_t i = 0; i < n; ++i) {
    if (!there[static_cast<size_t>(i)]) missing.push_back(i);
  }
  return missing;
}

void FeatureStore::add(const ImageNote& image, const ImageFeatures& rows, int64_t row) {
  std::vector<std::byte> record(record_bytes());
  std::byte* to = record.data() + sizeof(Head);
  for (const at::Tensor& part : {rows.features, rows.logits, rows.spatial}) {
    if (!part.defined()) continue;
    const size_t bytes = sizeof(float) * static_cast<size_t>(part.size(1));
    std::memcpy(to, part.const_data_ptr<float>() + row * part.size(1), bytes);
    to += bytes;
  }
  Head head = {0, image};
  std::memcpy(record.data(), &head, sizeof(head));
  head.checksum = checksum(std::span(record).subspan(sizeof(head.checksum)));
  std::memcpy(record.data(), &head.checksum, sizeof(head.checksum));
  if (folder_.empty()) {
    memory_.push_back(std::move(record));
    return;
  }
  const ssize_t written = write(file_, record.data(), record.size());
  if (written == static_cast<ssize_t>(record.size())) return;
  const int failure = written < 0 ? errno : ENOSPC;
  if (written > 0) {  // or what follows would lie askew
    const off_t end = lseek(file_, 0, SEEK_CUR) - written;
    if (ftruncate(file_, end) == 0) lseek(file_, end, SEEK_SET);
  }
  throw Error(fmt::format("{}: cannot be written: {}; the run goes on there once there is room",
                          folder_.string(), std::strerror(failure)));
}

StoredFeatures FeatureStore::collect(int64_t n) {
  StoredFeatures all;
  all.values.features = at::empty({n, sizes_.features});
  all.values.logits = at::empty({n, sizes_.logits});
  if (sizes_.spatial > 0) all.values.spatial = at::empty({n, sizes_.spatial});
  all.labels.assign(static_cast<size_t>(n), 0);
  std::vector<bool> there(static_cast<size_t>(n));
  std::vector<ImageCost> costs(static_cast<size_t>(n));
  const auto place = [&](const Head& head, std::span<const std::byte> values) {
    if (head.image.index < 0 || head.image.index >= n || there[static_cast<size_t>(head.image.index)]) return;
    there[static_cast<size_t>(head.image.index)] = true;
    all.labels[static_cast<size_t>(head.image.index)] = head.image.label;
    costs[static_cast<size_t>(head.image.index)] = head.image.cost;
    all.sizes.emplace(head.image.height, head.image.width);
    for (const at::Tensor& part : {all.values.features, all.values.logits, all.values.spatial}) {
      if (!part.defined()) continue;
      const size_t bytes = sizeof(float) * static_cast<size_t>(part.size(1));
      std::memcpy(part.data_ptr<float>() + head.image.index * part.size(1), values.data(), bytes);
      values = values.subspan(bytes);
    }
  };
  for (auto& record : memory_) {  // never all of them twice
    visit(record, place);
    record = {};
  }
  memory_.clear();
  for_records(place);
  for (int64_t i = 0; i < n; ++i) {
    DYDIT_CHECK(there[static_cast<size_t>(i)], "{}: has no features of image {}; start the run again",
                folder_.string(), i);
    const ImageCost& cost = costs[static_cast<size_t>(i)];  // in the order of the images: one sum
    all.mean_cost.seconds += cost.seconds / static_cast<double>(n);
    all.mean_cost.required_gmacs += cost.required_gmacs / static_cast<double>(n);
    all.mean_cost.executed_gmacs += cost.executed_gmacs / static_cast<double>(n);
  }
  return all;
}

}  // namespace dydit
