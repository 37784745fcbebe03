#include "dydit/data/latent_dataset.h"

#include <cmath>
#include <set>
#include <utility>

#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/base/noise.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"

namespace dydit {
namespace {

// The `draw` (see noise.h) of epoch 0's noise and flip, whose `sample` is the image: far from those of
// TrainingDraw and of an order of images.
constexpr uint64_t kNoiseDraw = 0x40000000, kFlipDraw = 0x80000000;

}  // namespace

LatentDataset::LatentDataset(LatentSource source, const DatasetOptions& options, const std::string& name)
    : source_(std::move(source)), name_(name) {
  const LatentInfo& info = source_.info;
  notes_ = source_.notes;
  side_ = info.side;
  channels_ = info.channels;
  const int side = options.side > 0 ? options.side : side_,
            channels = options.channels > 0 ? options.channels : channels_;
  DYDIT_CHECK(
      side == side_ && channels == channels_,
      "{}: holds latents of {}x{}x{}, {}x{}x{} are wanted; take the latents that the model was made for",
      name, channels_, side_, side_, channels, side, side);
  match(source_.classes, options, name);
  check_class_count(static_cast<int64_t>(std::set(source_.labels.begin(), source_.labels.end()).size()),
                    options, name);
  if (info.flips == 1) notes_.push_back("latents  of no mirrored images; none is flipped");
  if (!info.spread) notes_.push_back("latents  one an image; nothing is drawn");
}

int LatentDataset::label(int64_t index) const {
  return model_labels_[static_cast<size_t>(source_.labels[static_cast<size_t>(index)])];
}

void LatentDataset::read_values(int64_t index, const Draw& draw, float* out) const {
  const LatentInfo& info = source_.info;
  const auto count = static_cast<size_t>(info.values()), image = static_cast<size_t>(index);
  float uniform = 1;
  if (draw.flip && info.flips == 2) fill_uniform({&uniform, 1}, draw.seed, image, kFlipDraw + draw.epoch);
  const std::span<float> x(out, count);
  std::vector<float> std(info.spread ? count : 0), noise(std.size());
  source_.read(index, /*mirrored=*/uniform < 0.5f, x, std);
  if (info.spread) {
    fill_normal(noise, draw.seed, image, kNoiseDraw + draw.epoch);
    for (size_t i = 0; i < count; ++i) x[i] += std[i] * noise[i];
  }
  if (!info.scaled) info.scale.to_model(x, info.channels);
  for (const float value : x)
    DYDIT_CHECK(std::isfinite(value), "{}: {}: its latent holds NaN or infinity", name_, source_.name(index));
}

void LatentDataset::read(int64_t, std::span<uint8_t>) const {
  throw Error(fmt::format("{}: holds latents, images are wanted", name_));
}

std::string LatentDataset::fingerprint(int threads) const {
  const LatentScale& scale = source_.info.scale;
  const std::string stored = digest_of_stored(threads, source_.info.bytes, source_.name, source_.sha256);
  return sha256_hex(bytes_of(fmt::format("{} {} {} {} {}", stored, scale.scaling, scale.shift,
                                         fmt::join(scale.mean, ","), fmt::join(scale.std, ","))));
}

std::unique_ptr<Dataset> load_latents(const std::filesystem::path& path, const DatasetOptions& options) {
  DYDIT_USAGE_CHECK(options.split.empty(),
                    "{}: holds latents, which have no --split {}; name the folder of one", path.string(),
                    options.split);
  return std::make_unique<LatentDataset>(open_latents(path, {.threads = options.threads}), options,
                                         path.string());
}

}  // namespace dydit
