// Labelled images for training: ROOT/CLASS/*.png|jpg, a .tar, .tar.gz or .zip of it, CIFAR-10 binary files,
// or an npz of images and labels. Decoded once and kept in memory when they fit, else decoded when asked for.
// Or latents of images (latents.h), read when asked for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dydit/data/classes.h"
#include "dydit/data/left_out.h"

namespace dydit {

struct LatentInfo;

struct DatasetOptions {
  std::string split = "";  // folder inside an archive or root above the class folders ("train"); empty: none
  int side = 0;            // of the square image that read() gives; 0: that of more than half of the images
  int channels = 0;  // 1 or 3; 0: 3 unless most images are gray. Latents have their own side and channels
  bool skip_broken = false;                // broken images are left out and counted instead of an Error
  int64_t cache_bytes = int64_t{4} << 30;  // decoded images are kept when all of them need no more
  int threads = 1;                         // for decoding at the start
  std::optional<ModelClasses> model = {};  // whose labels the images get; none: the data's own
};

/// By what an image is drawn when it is read once more.
struct Draw {
  uint64_t seed = 0;
  uint64_t place = 0;  // training_sample() of its step and place in the batch: pixels are mirrored by it
  uint64_t epoch = 0;  // latents are drawn and mirrored by the image's index and this
  bool flip = false;   // one half is mirrored
};

/// Immutable after load; all of it may be called from several threads at once.
class Dataset {
 public:
  /// Reads the list of images (sorted class names give the labels), gives them the labels of options.model
  /// (match_classes), judges their sizes by their headers and decodes them when they fit. Throws Error that
  /// names the file: nothing there, an empty class folder, a broken image, names that are no UTF-8, classes
  /// that are not the model's, one class only (without a model), sizes without a majority, latents of another
  /// size than the options say.
  static std::unique_ptr<Dataset> load(const std::filesystem::path& path, const DatasetOptions& options);
  virtual ~Dataset() = default;

  virtual int64_t size() const = 0;
  virtual int label(int64_t index) const = 0;
  /// What a model sees of image `index`, (channels, side, side): its pixels, or one draw of its latent,
  /// scaled. A function of the index and `draw`. Throws Error that names an image which has changed or gone,
  /// or a latent that is not finite.
  virtual void read_values(int64_t index, const Draw& draw, float* out) const;
  /// Writes image `index` as planar bytes (channels, side, side): ADM's centre crop (halve by box filter
  /// while the short side is at least twice `side`, bicubic to `side`, cut the centre) where the size
  /// differs. Throws Error for latents and as read_values() does.
  virtual void read(int64_t index, std::span<uint8_t> out) const = 0;
  /// The same as a model sees it, (channels, side, side) in [-1, 1]: byte / 127.5 - 1; rows reversed when
  /// `flip`.
  void read_pixels(int64_t index, bool flip, float* out) const;
  /// Of a set of latents; null: images.
  virtual const LatentInfo* latents() const { return nullptr; }
  /// SHA-256 of a line for each image (its name, a byte 0, its label), sorted. Empty for latents.
  const std::string& list_sha256() const { return list_sha256_; }
  /// True when reading an image takes more than copying it.
  virtual bool decodes() const { return false; }

  /// SHA-256 (64 hexadecimal digits) of what training sees: class names, labels and pixels. Where images are
  /// not kept in memory, of their names, sizes and stored bytes instead: all of them up to 1 GiB, beyond it
  /// of evenly spaced images with that much together, so that a folder of ImageNet's size takes seconds, too.
  virtual std::string fingerprint(int threads) const;

  int side() const { return side_; }
  int channels() const { return channels_; }
  /// Of the labels: the model's names where it has some.
  const std::vector<std::string>& class_names() const { return class_names_; }
  /// Broken images left out.
  int64_t skipped() const { return skipped_; }
  /// Files that are not read, by kind; the broken ones too.
  const LeftOut& left_out() const { return left_out_; }
  /// Lines to tell: how images were made to fit, how classes were matched; what may be wrong.
  const std::vector<std::string>& notes() const { return notes_; }
  const std::vector<std::string>& warnings() const { return warnings_; }

 protected:
  /// What a fingerprint is made of: class names, labels and `image` of each image.
  std::string digest_of(int threads, const std::function<std::string(int64_t)>& image) const;
  /// The same of images that are not kept in memory: their names, and of evenly spaced ones with 1 GiB
  /// together what is stored of them.
  std::string digest_of_stored(int threads, uint64_t total_bytes,
                               const std::function<std::string(int64_t)>& name,
                               const std::function<std::string(int64_t)>& sha256) const;
  /// Gives the classes their labels of options.model.
  void match(const DataClasses& classes, const DatasetOptions& options, const std::string& name);
  /// At least two classes have images, or one of a model's.
  static void check_class_count(int64_t classes, const DatasetOptions& options, const std::string& name);

  int side_ = 0, channels_ = 0;
  std::vector<std::string> class_names_;
  std::vector<int> model_labels_;  // by label of the data
  std::string list_sha256_;
  int64_t skipped_ = 0;
  LeftOut left_out_;
  std::vector<std::string> notes_, warnings_;
};

}  // namespace dydit
