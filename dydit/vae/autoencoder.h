// Autoencoders: images to latents and back. AutoencoderKL (Rombach et al. 2022, section 3.1 and appendix) and
// the tiny ones of TAESD's layout.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <nlohmann/json_fwd.hpp>

#include "dydit/base/enum_names.h"
#include "dydit/base/progress.h"
#include "dydit/data/latent_scale.h"
#include "dydit/model/checkpoint.h"

namespace dydit {

enum class AutoencoderKind { Kl, Tiny };
inline constexpr EnumNames<AutoencoderKind, 2> kAutoencoderNames = {
    "autoencoder", {{"AutoencoderKL", AutoencoderKind::Kl}, {"taesd", AutoencoderKind::Tiny}}};

struct AutoencoderConfig {
  AutoencoderKind kind = AutoencoderKind::Kl;
  int latent_channels = 4;
  std::vector<int> channels = {128, 256, 512,
                               512};  // of the levels, full resolution first (block_out_channels)
  int layers = 2;                     // resnets of an encoder's level; a decoder's has one more
  int norm_groups = 32;
  bool quant_conv = true, post_quant_conv = true, mid_attention = true;
  bool pool = false;      // of a tiny one: taef2's blocks with GroupNorm at the lowest resolution
  int sample_size = 512;  // what diffusers' tiling reads
  LatentScale scale;

  /// Pixels of an image's side for one of the latent's.
  int factor() const { return 1 << (channels.size() - 1); }
};

/// An autoencoder as it was read and checked.
struct AutoencoderFile {
  std::filesystem::path path;
  std::string format;  // "diffusers folder", "ldm checkpoint (first_stage_model.)", "taesd", ...
  AutoencoderConfig config;
  Weights weights;  // under diffusers' names (a tiny one's: encoder.N..., decoder.N...), as stored
  bool has_encoder = false, has_decoder = false;
  std::vector<std::string> notes;  // lines for whoever reads it: defaults taken, keys passed over
  std::string sha256;              // of the weights' file
  std::vector<std::shared_ptr<const MappedFile>> files;

  /// Throws Error when one of the files was written to since it was read.
  void check_unchanged() const;
};

struct AutoencoderReadOptions {
  std::filesystem::path config = {};  // config.json for weights that come without one; empty: none
  // Its text as another file states it, by that file's name: taken where nothing else says.
  std::pair<std::string, std::string> stated = {};
};

/// True for what load_autoencoder takes, by content; a checkpoint of a DiT is not, nor a pipeline of one,
/// though it may have a `vae`.
bool is_autoencoder(const std::filesystem::path& path);

/// Reads a folder of diffusers (an autoencoder's, or the `vae` of a pipeline), a bare file under diffusers'
/// or ldm's names, an ldm checkpoint, or TAESD's files: one of them, a folder with an encoder's and a
/// decoder's, or "ENCODER,DECODER". "recipe:sd" and "recipe:taesd" are of published sizes, for tests and
/// measurements (dydit/vae/recipe.h). Throws Error that names the tensor, key or file.
AutoencoderFile load_autoencoder(const std::filesystem::path& path,
                                 const AutoencoderReadOptions& options = {});

/// The same for one file in memory, which outlives the result; `name` is used in messages.
AutoencoderFile parse_autoencoder(std::span<const std::byte> bytes, const std::string& name);

/// With the keys of diffusers' config.json.
nlohmann::json autoencoder_config_to_json(const AutoencoderConfig& config);

/// Multiply-adds of one image: convolutions, linears and the products of attention, as the network is defined
/// (an upsampled map convolved as a whole). Biases, norms and activations are not counted.
int64_t encode_macs(const AutoencoderConfig& config, int height, int width);  // of the image
int64_t decode_macs(const AutoencoderConfig& config, int height, int width);  // of the latent

/// What an encoder says of images: z = mean + exp(logvar / 2) noise. Both (B, C, h, w) float32.
struct Posterior {
  at::Tensor mean;
  at::Tensor logvar;  // clamped to [-30, 20]; undefined where the autoencoder is deterministic
};

/// Of what Autoencoder::moments() gives.
Posterior posterior_of(const at::Tensor& moments, AutoencoderKind kind);

/// Told what a stage gives, image by image, (1, C, h, w) float32. Stages are called as in the recorded
/// vectors: enc.conv_in, enc.down0.resnet0 (the first resnet of the first level), enc.down{i},
/// enc.mid.resnet0, enc.mid.attn, enc.mid.resnet1, enc.conv_out (before quant_conv); dec.conv_in, dec.mid...,
/// dec.up0.resnet0, dec.up{i}, dec.conv_out. Stages that are fused with the next one (norm_out) are left out.
using StageObserver = std::function<void(const std::string& stage, const at::Tensor& value)>;

struct AutoencoderOptions {
  at::ScalarType dtype = at::kFloat;  // or at::kBFloat16; sums and statistics are float32 always
  int threads = 1;
  bool encoder = false, decoder = true;  // what is packed
  StageObserver stages = {};             // for verify; costs copies
  // Where LibTorch computes it (torch_autoencoder.h); unset: on the CPU with kernels of our own.
  std::optional<at::Device> device = {};
  bool batch_invariant = true;  // as DeviceOptions has it, which is the process's
};

/// An autoencoder that only computes: its weights packed once, const, for any number of threads at the same
/// time. Image b depends on image b alone, bit for bit: not on the batch, not on the number of threads.
class Autoencoder {
 public:
  virtual ~Autoencoder() = default;

  const AutoencoderConfig& config() const { return config_; }
  /// images (B, 3, H, W) float32 in [-1, 1] (of a tiny autoencoder, too; its own range is its own matter) ->
  /// (B, 2 C, h, w) float32: the means, then logvar as the network gives it; of a tiny one (B, C, h, w).
  virtual at::Tensor moments(const at::Tensor& images) const = 0;
  Posterior encode(const at::Tensor& images) const { return posterior_of(moments(images), config_.kind); }
  /// z (B, C, h, w) float32, unscaled -> images (B, 3, H, W) float32 in about [-1, 1], not clamped. Throws
  /// Error that names the image and the stage for NaN or infinity.
  virtual at::Tensor decode(const at::Tensor& z) const = 0;
  /// An approximation of decode() for images whose maps are too large for the memory: all up to the decoder's
  /// levels is done whole, these in tiles of `tile` latents to each side, with a halo as wide as they look,
  /// and with moments from a mosaic of the image that is as large as a tile (a tiny one's levels have no
  /// norms: equal to decode() but for rounding).
  virtual at::Tensor decode_in_tiles(const at::Tensor& z, int tile = 64) const = 0;
  int64_t encode_macs(int height, int width) const { return dydit::encode_macs(config_, height, width); }
  int64_t decode_macs(int height, int width) const { return dydit::decode_macs(config_, height, width); }
  /// Bytes that one call needs at most beside its weights, argument and result.
  virtual double encode_bytes(int height, int width) const = 0;
  virtual double decode_bytes(int height, int width) const = 0;

 protected:
  explicit Autoencoder(const AutoencoderConfig& config) : config_(config) {}
  /// Throws UsageError where x is not (B, channels, height, width) in float32 on the CPU; `what`: for
  /// messages.
  static void check(const at::Tensor& x, const char* what, int64_t channels);
  AutoencoderConfig config_;
};

/// Throws Error where the file lacks the half that is asked for, or the device cannot be used.
std::unique_ptr<const Autoencoder> make_autoencoder(const AutoencoderFile& file,
                                                    const AutoencoderOptions& options);

}  // namespace dydit
