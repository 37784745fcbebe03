#include "dydit/vae/latent_writer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/base/version.h"
#include "dydit/data/latents.h"
#include "dydit/data/parallel.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "dydit/io/latents_index.h"
#include "dydit/io/recognize.h"
#include "dydit/io/safetensors.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Metadata = std::map<std::string, std::string>;

constexpr float kLargestHalf = 65504;

at::ScalarType scalar_type(Dtype dtype) {
  return dtype == Dtype::F16 ? at::kHalf : dtype == Dtype::BF16 ? at::kBFloat16 : at::kFloat;
}

// Images [first, first + count) in [-1, 1]: (count, 3, side, side).
at::Tensor read_images(const Dataset& images, int64_t first, int64_t count, int threads) {
  at::Tensor batch = at::empty({count, images.channels(), images.side(), images.side()}, at::kFloat);
  parallel_for(count, threads, [&](int64_t i) {
    images.read_pixels(first + i, /*flip=*/false, batch.data_ptr<float>() + i * batch.stride(0));
  });
  return batch;
}

Posterior encode(const Autoencoder& autoencoder, const at::Tensor& images, VaeTiling tiling) {
  return posterior_of(moments(autoencoder, images, tiling), autoencoder.config().kind);
}

// Sums over a shard, one a channel; in the order of its images.
struct ChannelSums {
  std::vector<double> mean, square, variance;
  double count = 0;

  explicit ChannelSums(size_t channels) : mean(channels), square(channels), variance(channels) {}

  void add(const LatentShard& shard) {
    const std::vector<int64_t>& shape = shard.mean.shape;
    const auto plane = static_cast<size_t>(shape[3] * shape[4]), channels = mean.size();
    const size_t planes = static_cast<size_t>(shard.mean.numel()) / plane,
                 bytes = plane * dtype_size(shard.mean.dtype);
    std::vector<float> values(plane);
    for (size_t p = 0; p < planes; ++p) {
      const size_t c = p % channels;
      read_floats(shard.mean.data + p * bytes, shard.mean.dtype, values);
      for (const double value : values) {
        mean[c] += value;
        square[c] += value * value;
      }
      if (!shard.logvar) continue;
      read_floats(shard.logvar->data + p * bytes, shard.mean.dtype, values);
      for (const double value : values) variance[c] += std::exp(value);
    }
    count += static_cast<double>(planes / channels * plane);
  }

  void add(const ChannelSums& other) {
    for (size_t c = 0; c < mean.size(); ++c) {
      mean[c] += other.mean[c];
      square[c] += other.square[c];
      variance[c] += other.variance[c];
    }
    count += other.count;
  }
};

class Writer {
 public:
  Writer(const Dataset& images, const Autoencoder& autoencoder, const LatentWriteOptions& options,
         const LatentWriters& writers, const ProgressFn& on_progress, const CancelFlag* cancel)
      : images_(images),
        autoencoder_(autoencoder),
        options_(options),
        writers_(writers),
        on_progress_(on_progress),
        cancel_(cancel) {
    check();
    report_.images = images.size();
    report_.shards = (images.size() + options.shard_size - 1) / options.shard_size;
    make_metadata();
  }

  LatentWriteReport run() {
    const c10::InferenceMode guard;
    std::optional<FolderLock> alone;  // two runs would write the same shards
    if (writers_.rank == 0) {
      make_folder();
      alone.emplace(options_.folder);
      remove_leftovers();
    }
    writers_.barrier();
    std::vector<int64_t> todo;
    for (int64_t k = writers_.rank; k < report_.shards; k += writers_.size) {
      if (is_there(k)) {
        ++report_.kept;
      } else {
        todo.push_back(k);
      }
    }
    for (const int64_t k : todo) total_ += count_of(k);
    for (const int64_t k : todo) write_shard(k);
    writers_.barrier();
    if (writers_.rank == 0) finish();
    return std::move(report_);
  }

 private:
  void check() const {
    const int factor = autoencoder_.config().factor(), side = images_.side();
    DYDIT_USAGE_CHECK(
        side % factor == 0,
        "images of {0}x{0}: this autoencoder takes sides that {1} divides; give --image-size {2}", side,
        factor, std::max(side / factor, 1) * factor);
    DYDIT_USAGE_CHECK(images_.channels() == 3, "images of {} channels: an autoencoder takes 3",
                      images_.channels());
    DYDIT_USAGE_CHECK(options_.shard_size >= 1 && options_.batch >= 1,
                      "shards of {} images, batches of {}: 1 or more are wanted", options_.shard_size,
                      options_.batch);
    const double latent = autoencoder_.config().latent_channels * std::pow(side / factor, 2);
    check_memory(autoencoder_.encode_bytes(side, side) +
                     2 * latent * (options_.flips ? 2 : 1) * static_cast<double>(dtype_size(options_.dtype)) *
                         static_cast<double>(std::min(options_.shard_size, images_.size())),
                 fmt::format("a shard of {} images", options_.shard_size), "take a smaller --shard-size");
  }

  void make_metadata() {
    const AutoencoderConfig& config = autoencoder_.config();
    const LatentScale scale = options_.normalize ? LatentScale() : config.scale;
    const json source = {
        {"name", options_.source}, {"images", images_.size()}, {"sha256", images_.list_sha256()}};
    metadata_ = {{"dydit_latents", std::to_string(kLatentsVersion)},
                 {"images", std::to_string(report_.images)},
                 {"shards", std::to_string(report_.shards)},
                 {"flips", options_.flips ? "2" : "1"},
                 {"image_side", std::to_string(images_.side())},
                 {"crop", "adm-center"},
                 {"vae_kind", std::string(kAutoencoderNames[config.kind])},
                 {"vae_sha256", options_.vae_sha256},
                 {"vae_config", json_text(autoencoder_config_to_json(config))},
                 {"scaling_factor", fmt::format("{}", scale.scaling)},
                 {"shift_factor", fmt::format("{}", scale.shift)},
                 {"encode_dtype", options_.encode_dtype},
                 {"class_names", json_text(json(images_.class_names()))},
                 {"source", json_text(source)},
                 {"written_by", fmt::format("dydit {}", kVersion)}};
    if (options_.tiling != VaeTiling::None)
      metadata_["encode_tiling"] = std::string(kVaeTilingNames[options_.tiling]);
    if (scale.mean.empty()) return;
    metadata_["latents_mean"] = json_text(json(scale.mean));
    metadata_["latents_std"] = json_text(json(scale.std));
  }

  void make_folder() const {
    std::error_code error;
    fs::create_directories(options_.folder, error);
    DYDIT_CHECK(!error, "{}: cannot make the folder: {}", options_.folder.string(), error.message());
    for (const std::string& name : names_in(options_.folder)) {
      const auto shards = shards_of_name(name);
      DYDIT_CHECK(
          !shards || *shards == report_.shards,
          "{}: is of another set, of {} shards where these images make {}; name another --out or remove it",
          (options_.folder / name).string(), *shards, report_.shards);
    }
  }

  // Of a run that was killed while it wrote.
  void remove_leftovers() const {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(options_.folder, ignored)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with(".latents") && name.find(".tmp-") != name.npos) fs::remove(entry.path(), ignored);
    }
  }

  fs::path path_of(int64_t k) const { return options_.folder / latent_shard_name(k, report_.shards); }
  int64_t count_of(int64_t k) const {
    return std::min(options_.shard_size, report_.images - k * options_.shard_size);
  }

  Metadata metadata_of(int64_t k) const {
    Metadata metadata = metadata_;
    metadata["shard"] = std::to_string(k);
    metadata["first_index"] = std::to_string(k * options_.shard_size);
    return metadata;
  }

  // A shard has its name only once it is whole; but it may be one of other images or settings.
  bool is_there(int64_t k) const {
    std::error_code unreadable;
    if (!fs::exists(path_of(k), unreadable)) return false;
    const SafetensorsFile file = read_safetensors(path_of(k));
    const Metadata wanted = metadata_of(k);
    for (const auto& [key, value] : wanted) {
      const auto found = file.metadata.find(key);
      const std::string has = found == file.metadata.end() ? "nothing" : quote(found->second);
      DYDIT_CHECK(has == quote(value) && file.metadata.size() == wanted.size(),
                  "{}: was packed otherwise: its {} is {}, now it is {}; name another --out or remove it",
                  path_of(k).string(), key, has, quote(value));
    }
    const auto mean = file.tensors.find("mean");
    DYDIT_CHECK(mean != file.tensors.end() && mean->second.dtype == options_.dtype,
                "{}: was packed with another --dtype; name another --out or remove it", path_of(k).string());
    return true;
  }

  void write_shard(int64_t k) {
    const int64_t first = k * options_.shard_size, count = count_of(k), flips = options_.flips ? 2 : 1;
    std::vector<int64_t> labels;
    at::Tensor mean, logvar;  // (count, flips, C, h, w)
    for (int64_t begin = 0; begin < count; begin += options_.batch) {
      if (cancel_ != nullptr && *cancel_) throw Cancelled();
      const int64_t end = std::min<int64_t>(begin + options_.batch, count);
      const at::Tensor batch = read_images(images_, first + begin, end - begin, options_.threads);
      for (int64_t flip = 0; flip < flips; ++flip) {
        const Posterior posterior = encode(autoencoder_, flip == 0 ? batch : batch.flip(3), options_.tiling);
        store(mean, posterior.mean, begin, flip, first, count);
        if (posterior.logvar.defined()) store(logvar, posterior.logvar, begin, flip, first, count);
      }
      done_ += end - begin;
      if (on_progress_) on_progress_({"images", static_cast<long>(done_), static_cast<long>(total_)});
    }
    for (int64_t i = first; i < first + count; ++i) labels.push_back(images_.label(i));
    TensorViews views = {
        {"mean", to_view(mean)},
        {"labels", {Dtype::I64, {count}, {}, reinterpret_cast<const std::byte*>(labels.data())}}};
    if (logvar.defined()) views["logvar"] = to_view(logvar);
    write_safetensors(path_of(k), views, metadata_of(k), Durability::Synced);
    ++report_.written;
  }

  // Values of images from `begin` on into `all`, which is made at the first.
  void store(at::Tensor& all, const at::Tensor& values, int64_t begin, int64_t flip, int64_t first,
             int64_t count) const {
    if (!all.defined()) {
      std::vector<int64_t> sizes = {count, options_.flips ? 2 : 1};
      sizes.insert(sizes.end(), values.sizes().begin() + 1, values.sizes().end());
      all = at::empty(sizes, scalar_type(options_.dtype));
    }
    const at::Tensor whole = values.contiguous();
    const float* const data = whole.data_ptr<float>();
    for (int64_t i = 0; i < whole.numel(); ++i) {
      const int64_t image = first + begin + i / whole.stride(0);
      DYDIT_CHECK(std::isfinite(data[i]),
                  "image {}: its latent holds NaN or infinity; is the autoencoder right?", image);
      DYDIT_CHECK(options_.dtype != Dtype::F16 || std::abs(data[i]) <= kLargestHalf,
                  "image {}: its latent holds {}, float16 at most {}; take --dtype f32", image, data[i],
                  kLargestHalf);
    }
    all.narrow(0, begin, whole.size(0)).select(1, flip).copy_(whole);
  }

  // The index, of what lies on the disk: its hashes, and sums of each shard merged in their order.
  void finish() {
    json index = metadata_;
    json& files = index["files"] = json::array();
    std::vector<std::string> hashes(static_cast<size_t>(report_.shards));
    std::vector<SafetensorsFile> shards;
    for (int64_t k = 0; k < report_.shards; ++k) shards.push_back(read_safetensors(path_of(k)));
    parallel_for(report_.shards, options_.threads, [&](int64_t k) {
      hashes[static_cast<size_t>(k)] = sha256_hex(shards[static_cast<size_t>(k)].file->bytes());
    });
    for (int64_t k = 0; k < report_.shards; ++k) {
      const auto at = static_cast<size_t>(k);
      files.push_back(
          {{"file", latent_shard_name(k, report_.shards)}, {"images", count_of(k)}, {"sha256", hashes[at]}});
      report_.bytes += shards[at].file->bytes().size();
    }
    measure(shards, index);
    index["channel_mean"] = report_.channel_mean;
    index["channel_std"] = report_.channel_std;
    if (options_.normalize) {
      for (size_t c = 0; c < report_.channel_std.size(); ++c)
        DYDIT_CHECK(report_.channel_std[c] > 0,
                    "channel {} is the same in all latents; it cannot be normalised", c);
      index["latents_mean"] = json_text(json(report_.channel_mean));
      index["latents_std"] = json_text(json(report_.channel_std));
    }
    write_output_file(options_.folder / kLatentsIndexName, index.dump(1) + "\n");
  }

  void measure(const std::vector<SafetensorsFile>& shards, const json& index) {
    const std::string name = (options_.folder / kLatentsIndexName).string(), text = index.dump();
    const LatentsIndex parsed = parse_latents_index(bytes_of(text), name);
    const auto channels = static_cast<size_t>(autoencoder_.config().latent_channels);
    std::vector<ChannelSums> sums(shards.size(), ChannelSums(channels));
    parallel_for(report_.shards, options_.threads, [&](int64_t k) {
      const auto at = static_cast<size_t>(k);
      sums[at].add(parse_latent_shard(shards[at], parsed, at, path_of(k).string()));
    });
    ChannelSums all(channels);
    for (const ChannelSums& part : sums) all.add(part);
    for (size_t c = 0; c < channels; ++c) {
      const double mean = all.mean[c] / all.count;
      report_.channel_mean.push_back(mean);
      report_.channel_std.push_back(
          std::sqrt(std::max(0.0, (all.square[c] + all.variance[c]) / all.count - mean * mean)));
    }
  }

  const Dataset& images_;
  const Autoencoder& autoencoder_;
  const LatentWriteOptions& options_;
  const LatentWriters& writers_;
  const ProgressFn& on_progress_;
  const CancelFlag* cancel_;
  LatentWriteReport report_;
  Metadata metadata_;             // of every shard
  int64_t done_ = 0, total_ = 0;  // images of this process
};

}  // namespace

LatentWriteReport write_latents(const Dataset& images, const Autoencoder& autoencoder,
                                const LatentWriteOptions& options, const LatentWriters& writers,
                                const ProgressFn& on_progress, const CancelFlag* cancel) {
  return Writer(images, autoencoder, options, writers, on_progress, cancel).run();
}

std::vector<double> reconstruction_psnr(const Dataset& images, const Autoencoder& autoencoder, int64_t count,
                                        VaeTiling tiling) {
  const c10::InferenceMode guard;
  std::vector<double> psnr;
  count = std::min(count, images.size());
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor image = read_images(images, i * images.size() / count, 1, 1);
    const at::Tensor again =
        decode(autoencoder, encode(autoencoder, image, tiling).mean, tiling).clamp(-1, 1);
    const double error = (again - image).to(at::kDouble).square().mean().item<double>();
    psnr.push_back(10 * std::log10(4 / error));
  }
  return psnr;
}

}  // namespace dydit
