// One dataset for all kinds of sources: crops what the source decodes and keeps it when it fits.
#include "dydit/data/dataset.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/base/noise.h"
#include "dydit/data/crop.h"
#include "dydit/data/latent_dataset.h"
#include "dydit/data/parallel.h"
#include "dydit/data/source.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/image.h"
#include "dydit/io/inflate.h"
#include "dydit/io/recognize.h"
#include "dydit/io/tar.h"
#include "dydit/io/text.h"
#include "dydit/io/zip.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxSide = 4096;

// (H, W, C) to (C, H, W)
void write_planes(const Image& image, std::span<uint8_t> out) {
  const auto channels = static_cast<size_t>(image.channels);
  const size_t plane = out.size() / channels;
  for (size_t c = 0; c < channels; ++c) {
    for (size_t i = 0; i < plane; ++i) out[c * plane + i] = image.pixels[i * channels + c];
  }
}

// What the headers of a set's images say; of more than kMostHeaders images, of that many evenly spaced ones.
class Shapes {
 public:
  Shapes(const ImageSource& source, int threads) {
    constexpr int64_t kMostHeaders = int64_t{1} << 16;
    const auto images = static_cast<int64_t>(source.labels.size());
    headers_.resize(static_cast<size_t>(std::min(images, kMostHeaders)));
    const auto count = static_cast<int64_t>(headers_.size());
    parallel_for(count, threads,
                 [&](int64_t i) { headers_[static_cast<size_t>(i)] = source.header(i * images / count); });
    std::erase(headers_, std::nullopt);
    sampled_ = count < images;
  }

  bool empty() const { return headers_.empty(); }
  int64_t count(const std::function<bool(const ImageHeader&)>& is) const {
    return std::count_if(headers_.begin(), headers_.end(), [&](const auto& header) { return is(*header); });
  }
  /// "3 of 12 images", or of the images that were looked at.
  std::string share(int64_t count) const {
    return fmt::format("{} of {} images{}", count, headers_.size(), sampled_ ? " looked at" : "");
  }

  /// 1 when more than half of the images are gray.
  int channels() const {
    const int64_t gray = count([](const ImageHeader& header) { return header.channels == 1; });
    return 2 * gray > static_cast<int64_t>(headers_.size()) ? 1 : 3;
  }

  /// That of more than half of the images, when it is square. Throws Error that names the sizes.
  int side(const std::string& name) const {
    std::map<std::pair<int, int>, int64_t> sizes;
    for (const auto& header : headers_) ++sizes[{header->width, header->height}];
    std::vector<std::pair<std::pair<int, int>, int64_t>> sorted(sizes.begin(), sizes.end());
    std::stable_sort(sorted.begin(), sorted.end(),
                     [](const auto& a, const auto& b) { return a.second > b.second; });
    const auto [width, height] = sorted.front().first;
    if (2 * sorted.front().second > static_cast<int64_t>(headers_.size()) && width == height &&
        width <= kMaxSide)
      return width;
    constexpr size_t kMostListed = 4;
    std::vector<std::string> parts;
    for (const auto& [size, images] : sorted) {
      if (parts.size() == kMostListed) break;
      parts.push_back(fmt::format("{} of {}x{}", images, size.first, size.second));
    }
    throw Error(
        fmt::format("{}: the images have {}{} pixels; name the side of the square to train on (--image-size)",
                    name, fmt::join(parts, ", "), sorted.size() > kMostListed ? ", ..." : ""));
  }

 private:
  std::vector<std::optional<ImageHeader>> headers_;
  bool sampled_ = false;
};

class StoredDataset final : public Dataset {
 public:
  StoredDataset(ImageSource source, const DatasetOptions& options, const std::string& name)
      : source_(std::move(source)) {
    left_out_ = source_.left_out;
    notes_ = source_.notes;
    match(source_.classes, options, name);
    choose_shape(options, name);
    const auto count = static_cast<int64_t>(source_.labels.size());
    const bool fits = count <= options.cache_bytes / image_bytes();
    if (fits) cache_.resize(static_cast<size_t>(count * image_bytes()));
    // Images that are not kept are decoded now only to find the broken ones.
    std::vector<uint8_t> broken(static_cast<size_t>(count), 0);
    if (fits || options.skip_broken) decode_all(options, broken);
    leave_out(broken);
    check_classes(options, name);
    list_images();
    if (fits) {  // the files themselves are no longer needed
      ImageSource kept;
      kept.labels = std::move(source_.labels);
      kept.classes = std::move(source_.classes);
      source_ = std::move(kept);
    }
  }

  int64_t size() const override { return static_cast<int64_t>(kept_.size()); }

  int label(int64_t index) const override {
    return model_labels_[static_cast<size_t>(source_.labels[static_cast<size_t>(at(index))])];
  }

  void read(int64_t index, std::span<uint8_t> out) const override {
    assert(static_cast<int64_t>(out.size()) == image_bytes());
    const int64_t stored = at(index);
    if (cache_.empty()) {
      decode(stored, out);
    } else {
      std::memcpy(out.data(), cache_.data() + stored * image_bytes(), out.size());
    }
  }

  bool decodes() const override { return cache_.empty(); }

  std::string fingerprint(int threads) const override {
    if (!cache_.empty()) return Dataset::fingerprint(threads);
    std::vector<uint64_t> sizes(kept_.size());
    parallel_for(size(), threads, [&](int64_t i) { sizes[static_cast<size_t>(i)] = source_.size(at(i)); });
    return digest_of_stored(
        threads, std::accumulate(sizes.begin(), sizes.end(), uint64_t{0}),
        [&](int64_t i) { return fmt::format("{}/{}", source_.name(at(i)), sizes[static_cast<size_t>(i)]); },
        [&](int64_t i) { return sha256_hex(source_.bytes(at(i)).bytes); });
  }

 private:
  int64_t image_bytes() const { return int64_t{side_} * side_ * channels_; }

  int64_t at(int64_t index) const {
    assert(index >= 0 && index < size());
    return kept_[static_cast<size_t>(index)];
  }

  void decode(int64_t stored, std::span<uint8_t> out) const {
    Image image = with_channels(source_.image(stored, side_), channels_);
    if (image.width != side_ || image.height != side_) image = center_crop(std::move(image), side_);
    write_planes(image, out);
  }

  // Sizes that were not given are those of most images; what is made to fit is told.
  void choose_shape(const DatasetOptions& options, const std::string& name) {
    side_ = options.side;
    channels_ = options.channels;
    const Shapes shapes(source_, options.threads);
    if (shapes.empty()) fail_unreadable(options.skip_broken, name);
    if (channels_ == 0) channels_ = shapes.channels();
    if (side_ == 0) side_ = shapes.side(name);
    const auto tell = [&](const char* what, const std::function<bool(const ImageHeader&)>& is) {
      if (const int64_t n = shapes.count(is); n > 0)
        notes_.push_back(
            fmt::format("images   {} {}", shapes.share(n), fmt::format(fmt::runtime(what), side_)));
    };
    if (channels_ == 3) tell("are gray, made RGB", [](const ImageHeader& h) { return h.channels == 1; });
    if (channels_ == 1)
      tell("are in colour, made gray", [](const ImageHeader& h) { return h.channels == 3; });
    if (options.side == 0) {
      tell("have another size, cropped to {0}x{0}",
           [&](const ImageHeader& h) { return h.width != side_ || h.height != side_; });
    }
    tell("are smaller than {0}x{0}, enlarged",
         [&](const ImageHeader& h) { return std::min(h.width, h.height) < side_; });
    tell("are turned by their EXIF orientation", [](const ImageHeader& h) { return h.orientation != 1; });
    tell("lose their alpha channel", [](const ImageHeader& h) { return h.alpha; });
    tell("are CMYK, made RGB", [](const ImageHeader& h) { return h.cmyk; });
  }

  // No header could be read: decoding says why.
  [[noreturn]] void fail_unreadable(bool skip_broken, const std::string& name) const {
    if (!skip_broken) source_.image(0, kMaxSide);
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
      } catch (const TooLarge&) {  // nothing is broken
        throw;
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
    if (skipped_ > 0) left_out_.add("broken", skipped_);
  }

  // An npz or CIFAR file may leave numbers unused, but a model that begins here wants two classes; a class
  // that lost its last image to skip_broken is an error.
  void check_classes(const DatasetOptions& options, const std::string& name) const {
    const std::vector<std::string>& names = source_.classes.names;
    std::vector<int64_t> left(names.size()), stored(names.size());
    for (const int label : source_.labels) ++stored[static_cast<size_t>(label)];
    for (const int64_t i : kept_) ++left[static_cast<size_t>(source_.labels[static_cast<size_t>(i)])];
    for (size_t c = 0; c < left.size(); ++c) {
      DYDIT_CHECK(left[c] > 0 || stored[c] == 0, "{}: all {} images of class {} are broken", name, stored[c],
                  quote(names[c]));
    }
    const auto classes = std::count_if(left.begin(), left.end(), [](int64_t n) { return n > 0; });
    check_class_count(classes, options, name);
  }

  void list_images() {
    std::vector<std::string> lines;
    for (const int64_t i : kept_)
      lines.push_back(fmt::format("{}{}{}\n", source_.name(i), '\0', source_.labels[static_cast<size_t>(i)]));
    std::sort(lines.begin(), lines.end());
    std::string all;
    for (const std::string& line : lines) all += line;
    list_sha256_ = sha256_hex(bytes_of(all));
  }

  ImageSource source_;
  std::vector<uint8_t> cache_;  // (stored images, channels, side, side), or empty
  std::vector<int64_t> kept_;   // index of the stored image
};

ImageSource open_tree(Tree tree, const std::string& split, const std::string& name, Labels labels) {
  if (has_cifar_files(tree)) return open_cifar(tree, split, name);
  return open_class_folders(std::make_shared<const Tree>(std::move(tree)), split, name, labels);
}

// A zip that is neither numpy's nor torch's.
bool is_zip_of_folders(const FileBytes& file, const std::string& name) {
  if (!text_of(file.bytes).starts_with("PK\x03\x04") || sniff_file_kind(file.bytes) == FileKind::Npz)
    return false;
  return ZipArchive(file.bytes, name).find_suffix("/data.pkl").empty();
}

}  // namespace

uint64_t unpack_limit(size_t size) {
  // Tiny images in a tar pack well, headers and padding even more so; the factor leaves room for them.
  constexpr uint64_t kFree = uint64_t{64} << 20, kRatio = 16;
  return kFree + kRatio * size;
}

ImageSource open_source(const fs::path& path, const std::string& split, Labels labels) {
  const std::string name = path.string();
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  DYDIT_CHECK(fs::exists(status), "{}: no such file or folder. Is --data-path right?", name);
  if (fs::is_directory(status)) return open_tree(Tree::of_folder(path), split, name, labels);

  const auto mapped = MappedFile::open(path);
  FileBytes file{mapped->bytes(), mapped};
  if (is_gzip(file.bytes)) {
    const auto unpacked =
        std::make_shared<const Buffer>(gunzip(file.bytes, name, unpack_limit(file.bytes.size())));
    file = {unpacked->bytes(), unpacked};
    DYDIT_CHECK(is_tar(file.bytes), "{}: is gzip, but unpacks to no tar", name);
  }
  if (is_tar(file.bytes)) return open_tree(Tree::of_tar(std::move(file), name), split, name, labels);
  if (is_zip_of_folders(file, name))
    return open_tree(Tree::of_zip(std::move(file), name), split, name, labels);
  const bool npz = sniff_file_kind(file.bytes) == FileKind::Npz;
  if (npz || path.extension() == ".bin") {
    DYDIT_CHECK(split.empty(), "{}: --split {} names a folder in a folder or archive, this is neither", name,
                quote(split));
    return npz ? open_npz(std::move(file), name, labels) : open_cifar_file(std::move(file), name);
  }
  refuse_file(file.bytes, path,
              "not a data set (a folder of class folders, a tar, tar.gz or zip of it, an npz of images and "
              "labels, or CIFAR-10's .bin)");
}

std::string Dataset::fingerprint(int threads) const {
  return digest_of(threads, [&](int64_t i) {
    std::vector<uint8_t> pixels(static_cast<size_t>(channels_) * static_cast<size_t>(side_ * side_));
    read(i, pixels);
    return sha256_hex(std::as_bytes(std::span(pixels)));
  });
}

// One digest an image, and one of those in order.
std::string Dataset::digest_of(int threads, const std::function<std::string(int64_t)>& image) const {
  std::vector<std::string> digests(static_cast<size_t>(size()));
  parallel_for(size(), threads, [&](int64_t i) {
    digests[static_cast<size_t>(i)] = sha256_hex(bytes_of(fmt::format("{}/{}", label(i), image(i))));
  });
  std::string all;
  for (const std::string& name : class_names_) all += fmt::format("{} {}\n", name.size(), name);
  for (const std::string& digest : digests) all += digest;
  return sha256_hex(bytes_of(all));
}

std::string Dataset::digest_of_stored(int threads, uint64_t total_bytes,
                                      const std::function<std::string(int64_t)>& name,
                                      const std::function<std::string(int64_t)>& sha256) const {
  constexpr uint64_t kMostBytes = uint64_t{1} << 30;
  const auto stride = static_cast<int64_t>(total_bytes / kMostBytes + 1);
  return digest_of(threads, [&](int64_t i) {
    const std::string text = name(i) + "/";
    return i % stride == 0 ? text + sha256(i) : text;
  });
}

void Dataset::match(const DataClasses& classes, const DatasetOptions& options, const std::string& name) {
  if (!options.model) {
    note_class_names(classes, notes_, warnings_);
    class_names_ = classes.names;
    model_labels_.resize(class_names_.size());
    std::iota(model_labels_.begin(), model_labels_.end(), 0);
    return;
  }
  ClassMatch found = match_classes(classes, *options.model, name);
  model_labels_ = std::move(found.labels);
  class_names_ = std::move(found.names);
  notes_.insert(notes_.end(), found.notes.begin(), found.notes.end());
  warnings_.insert(warnings_.end(), found.warnings.begin(), found.warnings.end());
}

void Dataset::check_class_count(int64_t classes, const DatasetOptions& options, const std::string& name) {
  DYDIT_CHECK(classes > (options.model ? 0 : 1),
              "{}: has images of one class only; at least two classes are wanted", name);
}

void Dataset::read_values(int64_t index, const Draw& draw, float* out) const {
  float uniform = 1;
  if (draw.flip)
    fill_uniform({&uniform, 1}, draw.seed, draw.place, static_cast<uint64_t>(TrainingDraw::Flip));
  read_pixels(index, /*flip=*/uniform < 0.5f, out);
}

void Dataset::read_pixels(int64_t index, bool flip, float* out) const {
  const auto side = static_cast<size_t>(side_);
  std::vector<uint8_t> bytes(static_cast<size_t>(channels_) * side * side);
  read(index, bytes);
  for (size_t row = 0; row < bytes.size(); row += side) {
    for (size_t x = 0; x < side; ++x) out[row + x] = bytes[row + (flip ? side - 1 - x : x)] / 127.5f - 1.0f;
  }
}

std::unique_ptr<Dataset> Dataset::load(const fs::path& path, const DatasetOptions& options) {
  if (latent_layout(path)) return load_latents(path, options);
  DYDIT_USAGE_CHECK(options.side >= 0 && options.side <= kMaxSide,
                    "image side {}: 1 to {} is wanted, or 0 for that of most images", options.side, kMaxSide);
  DYDIT_USAGE_CHECK(
      options.channels == 0 || options.channels == 1 || options.channels == 3,
      "{}: holds images, of 1 (gray) or 3 channels (RGB); {} are those of latents, which dydit latents "
      "makes of images",
      path.string(), options.channels);
  return std::make_unique<StoredDataset>(open_source(path, options.split), options, path.string());
}

}  // namespace dydit
