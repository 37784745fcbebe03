// One dataset for all kinds of sources: crops what the source decodes and keeps it when it fits.
#include "dydit/data/dataset.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "dydit/base/error.h"
#include "dydit/data/crop.h"
#include "dydit/data/source.h"
#include "dydit/io/file.h"
#include "dydit/io/image.h"
#include "dydit/io/inflate.h"
#include "dydit/io/tar.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxSide = 4096;

// byte / 127.5 - 1
const std::array<float, 256>& signed_levels() {
  static const std::array<float, 256> levels = [] {
    std::array<float, 256> table{};
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<float>(i) / 127.5f - 1.0f;
    return table;
  }();
  return levels;
}

// fn(i) for i = 0..count-1 on `threads` threads. Rethrows the exception of the lowest i that threw, so that
// which image is named does not depend on timing.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& fn) {
  std::atomic<int64_t> next{0}, lowest{count};
  std::mutex mutex;
  std::exception_ptr error;
  const auto work = [&] {
    for (int64_t i = next++; i < lowest; i = next++) {  // all below the lowest failure are still done
      try {
        fn(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (i < lowest) {
          lowest = i;
          error = std::current_exception();
        }
      }
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (int t = 1; t < std::min<int64_t>(threads, count); ++t) helpers.emplace_back(work);
    work();
  }
  if (error) std::rethrow_exception(error);
}

// (H, W, C) to (C, H, W)
void write_planes(const Image& image, std::span<uint8_t> out) {
  const auto channels = static_cast<size_t>(image.channels);
  const size_t plane = out.size() / channels;
  for (size_t c = 0; c < channels; ++c) {
    for (size_t i = 0; i < plane; ++i) out[c * plane + i] = image.pixels[i * channels + c];
  }
}

class StoredDataset final : public Dataset {
 public:
  StoredDataset(ImageSource source, const DatasetOptions& options, const std::string& name)
      : source_(std::move(source)) {
    class_names_ = source_.class_names;
    choose_size(options, name);
    const auto count = static_cast<int64_t>(source_.labels.size());
    const bool fits = count <= options.cache_bytes / image_bytes();
    if (fits) cache_.resize(static_cast<size_t>(count * image_bytes()));
    // Images that are not kept are decoded now only to find the broken ones.
    std::vector<uint8_t> broken(static_cast<size_t>(count), 0);
    if (fits || options.skip_broken) decode_all(options, broken);
    leave_out(broken);
    check_classes(name);
    if (fits) source_.image = nullptr;
  }

  int64_t size() const override { return static_cast<int64_t>(kept_.size()); }

  int label(int64_t index) const override { return source_.labels[static_cast<size_t>(at(index))]; }

  void read(int64_t index, std::span<uint8_t> out) const override {
    assert(static_cast<int64_t>(out.size()) == image_bytes());
    const int64_t stored = at(index);
    if (cache_.empty()) {
      decode(stored, out);
    } else {
      std::memcpy(out.data(), cache_.data() + stored * image_bytes(), out.size());
    }
  }

 private:
  int64_t image_bytes() const { return int64_t{side_} * side_ * channels_; }

  int64_t at(int64_t index) const {
    assert(index >= 0 && index < size());
    return kept_[static_cast<size_t>(index)];
  }

  void decode(int64_t stored, std::span<uint8_t> out) const {
    Image image = with_channels(source_.image(stored), channels_);
    if (image.width != side_ || image.height != side_) image = center_crop(std::move(image), side_);
    write_planes(image, out);
  }

  // Sizes that were not given are those of the first image that can be read.
  void choose_size(const DatasetOptions& options, const std::string& name) {
    side_ = options.side;
    channels_ = options.channels;
    if (side_ > 0 && channels_ > 0) return;
    const Image first = first_image(options.skip_broken, name);
    if (channels_ == 0) channels_ = first.channels;
    if (side_ > 0) return;
    DYDIT_CHECK(
        first.width == first.height && first.width <= kMaxSide,
        "{}: the first image has {}x{} pixels; name the side of the square to train on (--image-size)", name,
        first.width, first.height);
    side_ = first.width;
  }

  Image first_image(bool skip_broken, const std::string& name) const {
    for (size_t i = 0; i < source_.labels.size(); ++i) {
      try {
        return source_.image(static_cast<int64_t>(i));
      } catch (const Error&) {
        if (!skip_broken) throw;
      }
    }
    throw Error(fmt::format("{}: none of {} images can be read", name, source_.labels.size()));
  }

  void decode_all(const DatasetOptions& options, std::vector<uint8_t>& broken) {
    const auto count = static_cast<int64_t>(broken.size());
    const auto size = static_cast<size_t>(image_bytes());
    parallel_for(count, options.threads, [&](int64_t i) {
      std::vector<uint8_t> scratch(cache_.empty() ? size : 0);
      const std::span out = cache_.empty() ? std::span(scratch)
                                           : std::span(cache_).subspan(static_cast<size_t>(i) * size, size);
      try {
        decode(i, out);
      } catch (const Error&) {
        if (!options.skip_broken) throw;
        broken[static_cast<size_t>(i)] = 1;
      }
    });
  }

  void leave_out(const std::vector<uint8_t>& broken) {
    for (size_t i = 0; i < broken.size(); ++i) {
      if (broken[i] == 0) kept_.push_back(static_cast<int64_t>(i));
    }
    skipped_ = static_cast<int64_t>(broken.size() - kept_.size());
  }

  // An npz or CIFAR file may leave numbers unused, but training wants two classes; a class that lost its last
  // image to skip_broken is an error.
  void check_classes(const std::string& name) const {
    std::vector<int64_t> left(class_names_.size()), stored(class_names_.size());
    for (const int label : source_.labels) ++stored[static_cast<size_t>(label)];
    for (const int64_t i : kept_) ++left[static_cast<size_t>(source_.labels[static_cast<size_t>(i)])];
    for (size_t c = 0; c < left.size(); ++c) {
      DYDIT_CHECK(left[c] > 0 || stored[c] == 0, "{}: all {} images of class {} are broken", name, stored[c],
                  quote(class_names_[c]));
    }
    DYDIT_CHECK(std::count_if(left.begin(), left.end(), [](int64_t n) { return n > 0; }) > 1,
                "{}: has images of one class only; at least two classes are wanted", name);
  }

  ImageSource source_;
  std::vector<uint8_t> cache_;  // (stored images, channels, side, side), or empty
  std::vector<int64_t> kept_;   // index of the stored image
};

FileBytes unpack(const fs::path& path, const MappedFile& file) {
  auto unpacked =
      std::make_shared<const Buffer>(gunzip(file.bytes(), path.string(), unpack_limit(file.bytes().size())));
  return {unpacked->bytes(), unpacked};
}

ImageSource open_tree(Tree tree, const std::string& split, const std::string& name) {
  if (has_cifar_files(tree)) return open_cifar(tree, split, name);
  return open_class_folders(std::make_shared<const Tree>(std::move(tree)), split, name);
}

}  // namespace

uint64_t unpack_limit(size_t size) {
  // Tiny images in a tar pack well, headers and padding even more so; the factor leaves room for them.
  constexpr uint64_t kFree = uint64_t{64} << 20, kRatio = 16;
  return kFree + kRatio * size;
}

ImageSource open_source(const fs::path& path, const std::string& split) {
  const std::string name = path.string();
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  DYDIT_CHECK(fs::exists(status), "{}: no such file or folder. Is --data-path right?", name);
  if (fs::is_directory(status)) return open_tree(Tree::of_folder(path), split, name);

  const auto mapped = MappedFile::open(path);
  FileBytes file{mapped->bytes(), mapped};
  if (is_gzip(file.bytes)) {
    file = unpack(path, *mapped);
    DYDIT_CHECK(is_tar(file.bytes), "{}: is gzip, but unpacks to no tar", name);
  }
  if (is_tar(file.bytes)) return open_tree(Tree::of_tar(std::move(file), name), split, name);
  DYDIT_CHECK(split.empty(), "{}: --split {} names a folder in a folder or tar, this is neither", name,
              quote(split));
  if (sniff_file_kind(file.bytes) == FileKind::Npz) return open_npz(std::move(file), name);
  if (path.extension() == ".bin") return open_cifar_file(std::move(file), name);
  throw Error(
      fmt::format("{}: is no data set; a folder of class folders, a .tar or .tar.gz of it, an .npz with "
                  "images and labels, or CIFAR-10's .bin is wanted",
                  name));
}

void Dataset::read_pixels(int64_t index, bool flip, float* out) const {
  const auto side = static_cast<size_t>(side_);
  std::vector<uint8_t> bytes(static_cast<size_t>(channels_) * side * side);
  read(index, bytes);
  const std::array<float, 256>& levels = signed_levels();
  for (size_t row = 0; row < bytes.size(); row += side) {
    for (size_t x = 0; x < side; ++x) out[row + x] = levels[bytes[row + (flip ? side - 1 - x : x)]];
  }
}

std::unique_ptr<Dataset> Dataset::load(const fs::path& path, const DatasetOptions& options) {
  DYDIT_USAGE_CHECK(options.side >= 0 && options.side <= kMaxSide,
                    "image side {}: 1 to {} is wanted, or 0 for the first image's", options.side, kMaxSide);
  DYDIT_USAGE_CHECK(options.channels == 0 || options.channels == 1 || options.channels == 3,
                    "{} channels: 1 (gray) or 3 (RGB) are wanted, or 0 for the first image's",
                    options.channels);
  return std::make_unique<StoredDataset>(open_source(path, options.split), options, path.string());
}

}  // namespace dydit
