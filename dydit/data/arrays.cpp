// Images that lie as arrays: CIFAR-10's binary files and npz.
#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "dydit/base/error.h"
#include "dydit/data/source.h"
#include "dydit/io/bytes.h"
#include "dydit/io/npz_reader.h"
#include "dydit/io/tensor_view.h"
#include "dydit/io/text.h"
#include "dydit/io/zip.h"

namespace dydit {
namespace {

constexpr int kCifarSide = 32, kCifarClasses = 10;
constexpr size_t kCifarPlane = kCifarSide * kCifarSide;
constexpr size_t kCifarRecord = 1 + 3 * kCifarPlane;
constexpr size_t kCifar100Record = 2 + 3 * kCifarPlane;
constexpr int64_t kMaxClasses = 65536;

// Images of one size, one after the other as their bytes are.
void set_records(ImageSource& source, const ImageHeader& header, std::function<FileBytes(int64_t)> bytes) {
  source.header = [header](int64_t) { return std::optional(header); };
  source.name = [](int64_t index) { return std::to_string(index); };
  source.size = [bytes](int64_t index) { return bytes(index).bytes.size(); };
  source.bytes = std::move(bytes);
}

bool is_train_file(std::string_view name) {
  return name.starts_with("data_batch_") && name.ends_with(".bin");
}
bool is_test_file(std::string_view name) { return name == "test_batch.bin"; }

// The folder that holds CIFAR's files: the root, or one folder below (cifar-10-batches-bin).
const Folder* cifar_folder(const Folder& root) {
  const auto is_it = [](const Folder& folder) {
    return std::any_of(folder.files.begin(), folder.files.end(), [](const TreeFile& file) {
      return is_train_file(file.name()) || is_test_file(file.name());
    });
  };
  if (is_it(root)) return &root;
  for (const auto& [name, folder] : root.folders) {
    if (is_it(*folder)) return folder.get();
  }
  return nullptr;
}

// One name a line; numbers when there are not ten.
DataClasses cifar_names(std::string_view text, const std::string& file) {
  std::vector<std::string> names;
  text = checked_text(text, file);
  while (!text.empty() && names.size() <= size_t{kCifarClasses}) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) names.emplace_back(line);
    if (!line.empty()) check_class_name(names.back(), fmt::format("{}: the class name", file));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  if (names.size() != size_t{kCifarClasses}) return numbered_classes(kCifarClasses);
  return {std::move(names), /*named=*/true};
}

Image cifar_image(std::span<const std::byte> record) {
  Image image{kCifarSide, kCifarSide, 3, std::vector<uint8_t>(3 * kCifarPlane)};
  const auto* planes = reinterpret_cast<const uint8_t*>(record.data()) + 1;
  for (size_t i = 0; i < kCifarPlane; ++i) {
    for (size_t c = 0; c < 3; ++c) image.pixels[i * 3 + c] = planes[c * kCifarPlane + i];
  }
  return image;
}

// A span of records for each image; the owners keep them alive.
ImageSource cifar_source(const std::vector<std::pair<FileBytes, std::string>>& files) {
  ImageSource source;
  source.classes = numbered_classes(kCifarClasses);
  std::vector<std::span<const std::byte>> records;
  std::vector<std::shared_ptr<const void>> owners;
  for (const auto& [file, name] : files) {
    DYDIT_CHECK(
        file.bytes.empty() || file.bytes.size() % kCifarRecord == 0 ||
            file.bytes.size() % kCifar100Record != 0,
        "{}: holds records of CIFAR-100, which are not read; put the images of each class into a folder, "
        "ROOT/CLASS/*.png",
        name);
    DYDIT_CHECK(
        !file.bytes.empty() && file.bytes.size() % kCifarRecord == 0,
        "{}: {} bytes are no whole number of CIFAR-10 records of {} bytes. Was the download cut short?", name,
        file.bytes.size(), kCifarRecord);
    for (size_t at = 0; at < file.bytes.size(); at += kCifarRecord) {
      const int label = std::to_integer<int>(file.bytes[at]);
      DYDIT_CHECK(label < kCifarClasses, "{}: record {} has the label {}, wanted 0 to {}. Is it CIFAR-10?",
                  name, at / kCifarRecord, label, kCifarClasses - 1);
      source.labels.push_back(label);
      records.push_back(file.bytes.subspan(at, kCifarRecord));
    }
    owners.push_back(file.owner);
  }
  const auto record =
      [records = std::make_shared<const std::vector<std::span<const std::byte>>>(std::move(records)),
       owners = std::move(owners)](int64_t index) {
        return FileBytes{(*records)[static_cast<size_t>(index)], nullptr};
      };
  source.image = [record](int64_t index, int) { return cifar_image(record(index).bytes); };
  set_records(source, {.height = kCifarSide, .width = kCifarSide}, record);
  return source;
}

NpyArray find_array(const ZipArchive& archive, const char* name, const char* other, size_t file_bytes,
                    const std::string& file) {
  for (const char* candidate : {name, other}) {
    if (auto array = read_npz_array(archive, candidate, unpack_limit(file_bytes), file))
      return *std::move(array);
  }
  throw Error(
      fmt::format("{}: has neither an array {} nor {}; save it as numpy.savez(path, images=..., labels=...)",
                  file, quote(name), quote(other)));
}

// (N, H, W) or (N, H, W, C) uint8; sets the sizes of `shape` and returns N.
int64_t check_images(const NpyArray& images, Image& shape, const std::string& name) {
  constexpr int64_t kMaxSide = 1 << 16;
  const std::vector<int64_t>& s = images.shape;
  const bool ranked = s.size() == 3 || (s.size() == 4 && (s[3] == 1 || s[3] == 3));
  const bool sized = ranked && s[0] > 0 && s[1] > 0 && s[2] > 0 && s[1] <= kMaxSide && s[2] <= kMaxSide;
  DYDIT_CHECK(sized && images.kind == 'u' && images.item_size == 1,
              "{}: images are {} of numpy type {}{}; (N, H, W), (N, H, W, 1) or (N, H, W, 3) of u1 (uint8) "
              "are wanted",
              name, shape_text(s), images.kind, images.item_size);
  shape.height = static_cast<int>(s[1]);
  shape.width = static_cast<int>(s[2]);
  shape.channels = s.size() == 3 ? 1 : static_cast<int>(s[3]);
  return s[0];
}

std::vector<int> read_labels(const NpyArray& labels, int64_t count, const std::string& name) {
  DYDIT_CHECK((labels.kind == 'i' || labels.kind == 'u') && labels.shape == std::vector<int64_t>{count},
              "{}: labels are {} of numpy type {}{}; ({}) integers are wanted, one an image", name,
              shape_text(labels.shape), labels.kind, labels.item_size, count);
  std::vector<int> values;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t label = integer_at(labels, static_cast<size_t>(i));
    DYDIT_CHECK(label >= 0 && label < kMaxClasses, "{}: label {} of image {} is out of range, wanted 0 to {}",
                name, label, i, kMaxClasses - 1);
    values.push_back(static_cast<int>(label));
  }
  return values;
}

}  // namespace

bool has_cifar_files(const Tree& tree) { return cifar_folder(tree.root()) != nullptr; }

ImageSource open_cifar(const Tree& tree, const std::string& split, const std::string& name) {
  DYDIT_CHECK(split.empty() || split == "train" || split == "test",
              "{}: CIFAR-10 has no split {}; train (data_batch_*.bin) and test (test_batch.bin) are there",
              name, quote(split));
  std::vector<std::pair<FileBytes, std::string>> files;
  DataClasses classes = numbered_classes(kCifarClasses);
  for (const TreeFile& file : cifar_folder(tree.root())->files) {
    const bool wanted = split == "test" ? is_test_file(file.name()) : is_train_file(file.name());
    if (wanted) files.emplace_back(tree.read(file), tree.display(file));
    if (file.name() == "batches.meta.txt") {
      classes = cifar_names(text_of(tree.read(file).bytes), tree.display(file));
    }
  }
  DYDIT_CHECK(!files.empty(), "{}: has no {}", name, split == "test" ? "test_batch.bin" : "data_batch_*.bin");
  ImageSource source = cifar_source(files);
  source.classes = std::move(classes);
  source.left_out = tree.left_out();
  return source;
}

ImageSource open_cifar_file(FileBytes file, const std::string& name) {
  return cifar_source({{std::move(file), name}});
}

ImageSource open_npz(FileBytes file, const std::string& name, Labels wanted) {
  const ZipArchive archive(file.bytes, name);
  const NpyArray images = find_array(archive, "images", "arr_0", file.bytes.size(), name);
  Image shape;
  const int64_t count = check_images(images, shape, name);
  ImageSource source;
  const bool labelled = archive.find_packed("labels.npy") || archive.find_packed("arr_1.npy");
  if (wanted == Labels::Optional && !labelled) {
    source.labels.assign(static_cast<size_t>(count), kNoLabel);
  } else {
    source.labels = read_labels(find_array(archive, "labels", "arr_1", file.bytes.size(), name), count, name);
    source.classes = numbered_classes(*std::max_element(source.labels.begin(), source.labels.end()) + 1);
  }
  const auto record = [images, owner = std::move(file.owner)](int64_t index) {
    const size_t size = images.data.size() / static_cast<size_t>(images.shape[0]);
    return FileBytes{images.data.subspan(static_cast<size_t>(index) * size, size), nullptr};
  };
  source.image = [shape, record](int64_t index, int) {
    Image image = shape;
    const auto bytes = record(index).bytes;
    const auto* pixels = reinterpret_cast<const uint8_t*>(bytes.data());
    image.pixels.assign(pixels, pixels + bytes.size());
    return image;
  };
  set_records(source, {.height = shape.height, .width = shape.width, .channels = shape.channels}, record);
  return source;
}

}  // namespace dydit
