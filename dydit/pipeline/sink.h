// Where samples go as they finish: a PNG each, one grid, npz, latents, a map of the cost. Files are written
// beside their target and renamed when they are whole.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "dydit/pipeline/generate.h"

namespace dydit {

inline constexpr int kGridColumns = 4;  // as torchvision's make_grid in DiT's scripts

/// True when the model's samples are gray or RGB images; else they are latents.
inline bool makes_pixels(const DiTConfig& config) {
  return config.in_channels == 3 || config.in_channels == 1;
}

struct PixelShape {
  int channels = 0, height = 0, width = 0;  // no channels: there are no pixels
};

/// What is being made; outlives the sinks.
struct SinkRun {
  nlohmann::json record;  // of the run (run_record), without its images'
  int num_images = 1;
  PixelShape pixels;    // of GeneratedSample::pixels
  int sample_side = 0;  // of GeneratedSample::sample, square, where a map of its tokens is drawn
};

/// Of a picture of the tokens: the images' where there are some.
inline int map_side(const SinkRun& run) {
  return run.pixels.channels > 0 ? run.pixels.height : run.sample_side;
}

class Sink {
 public:
  virtual ~Sink() = default;

  /// A sample and its image_record, in order of index.
  virtual void add(const GeneratedSample& sample, const nlohmann::json& record) = 0;
  /// A preview as pixels (images, channels, height, width), and what is known of its images.
  virtual void add_preview(const Preview&, const nlohmann::json& records) {}
  /// Writes what takes all samples. `records` are those of the samples that were added, one at least.
  virtual void finish(const nlohmann::json& records) {}
  /// The PNG in which image `index` is, or is going to be; empty: none.
  virtual std::string file_of(int index) const { return ""; }
  /// All that is written so far.
  const std::vector<std::string>& files() const { return files_; }

 protected:
  std::vector<std::string> files_;
};

/// Names of PNGs: before, the image's number in `digits` or more, after. No digits: one name for all.
struct PngName {
  std::string before, after;
  int digits = 0;

  std::string of(int index) const;
  /// x.png -> x_step0010.png
  std::string of_preview(int index, int step) const;
};

/// Each image in a file of its own, and held no longer; with one name for all a grid, kGridColumns a row,
/// which holds them. Previews lie beside their images; those of a grid grow with each batch.
std::unique_ptr<Sink> make_png_sink(const SinkRun& run, const PngName& name);
/// Where the computation went (cost_map.h), beside the images where there are some; holds the images and
/// shares.
std::unique_ptr<Sink> make_cost_map_sink(const SinkRun& run, const std::string& path);
/// npz, written image by image, and its records in PATH.json: the ADM evaluator expects arr_0 alone.
std::unique_ptr<Sink> make_npz_sink(const SinkRun& run, const std::string& path);
/// Safetensors of float32 latents (num_images, in_channels, side, side) and int64 labels; holds them all.
std::unique_ptr<Sink> make_latents_sink(const SinkRun& run, const std::string& path);

}  // namespace dydit
