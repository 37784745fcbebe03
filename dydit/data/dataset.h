// Labelled images for training: ROOT/CLASS/*.png|jpg, a .tar or .tar.gz of it, CIFAR-10 binary files, or an
// npz of images and labels. Decoded once and kept in memory when they fit, else decoded when asked for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace dydit {

struct DatasetOptions {
  std::string split = "";  // folder inside a tar or root above the class folders ("train"); empty: none
  int side = 0;      // of the square image that read() gives; 0: that of the first image (must be square)
  int channels = 0;  // 1 or 3; 0: that of the first image
  bool skip_broken = false;                // broken images are left out and counted instead of an Error
  int64_t cache_bytes = int64_t{4} << 30;  // decoded images are kept when all of them need no more
  int threads = 1;                         // for decoding at the start
};

/// Immutable after load; read() may be called from several threads at once.
class Dataset {
 public:
  /// Reads the list of images (sorted class names give the labels; dot files are ignored) and decodes them
  /// when they fit. Throws Error that names the file: nothing there, an empty class folder, a broken image,
  /// one class only, an image smaller than 1 pixel.
  static std::unique_ptr<Dataset> load(const std::filesystem::path& path, const DatasetOptions& options);
  virtual ~Dataset() = default;

  virtual int64_t size() const = 0;
  virtual int label(int64_t index) const = 0;
  /// Writes image `index` as planar bytes (channels, side, side): ADM's centre crop (halve by box filter
  /// while the short side is at least twice `side`, bicubic to `side`, cut the centre) where the size
  /// differs.
  virtual void read(int64_t index, std::span<uint8_t> out) const = 0;
  /// The same as a model sees it, (channels, side, side) in [-1, 1]: byte / 127.5 - 1; rows reversed when
  /// `flip`.
  void read_pixels(int64_t index, bool flip, float* out) const;

  int side() const { return side_; }
  int channels() const { return channels_; }
  const std::vector<std::string>& class_names() const { return class_names_; }
  /// Broken images left out.
  int64_t skipped() const { return skipped_; }

 protected:
  int side_ = 0, channels_ = 0;
  std::vector<std::string> class_names_;
  int64_t skipped_ = 0;
};

}  // namespace dydit
