// From names and views to a checked autoencoder: configuration where none is given, then every tensor that
// the network has, in the file's spelling, and none beside it.
#include <algorithm>
#include <array>
#include <set>

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/base/nearest.h"
#include "dydit/io/text.h"
#include "dydit/model/checkpoint_parts.h"
#include "dydit/vae/config.h"
#include "dydit/vae/read_parts.h"

namespace dydit {
namespace {

constexpr int kTinyWidth = 64;  // of TAESD's first convolutions
constexpr int64_t kMaxSize = 1 << 14;
constexpr int kMaxResnets = 16;
constexpr std::array<std::string_view, 4> kRoots = {"encoder.", "decoder.", "quant_conv.",
                                                    "post_quant_conv."};
constexpr const char* kName = "--vae-config names a config.json";

// A file's tensors by our names.
class NamedTensors {
 public:
  NamedTensors(const RawAutoencoder& raw, VaeNames names, std::string_view prefix)
      : raw_(raw), names_(names), prefix_(prefix) {}

  void set_levels(size_t levels) { levels_ = static_cast<int>(levels); }
  VaeNames names() const { return names_; }
  std::string spelled(const std::string& name) const {
    return prefix_ + dydit::spelled(names_, name, levels_);
  }
  bool has(const std::string& name) const { return raw_.tensors.contains(spelled(name)); }

  const TensorView& at(const std::string& name) const {
    const std::string key = spelled(name);
    const auto found = raw_.tensors.find(key);
    if (found != raw_.tensors.end()) return found->second;
    std::vector<std::string> present;
    for (const auto& [candidate, view] : raw_.tensors) {
      if (candidate.starts_with(prefix_)) present.push_back(candidate);
    }
    throw Error(fmt::format("{}: tensor {} is missing (nearest present: {})", raw_.name, key,
                            printable(nearest_name(key, present))));
  }

  int size(const std::string& name, size_t axis) const {
    const std::vector<int64_t>& shape = at(name).shape;
    DYDIT_CHECK(axis < shape.size() && shape[axis] > 0 && shape[axis] <= kMaxSize,
                "{}: {} has shape {}; no autoencoder has such a layer", raw_.name, spelled(name),
                shape_text(shape));
    return static_cast<int>(shape[axis]);
  }

 private:
  const RawAutoencoder& raw_;
  const VaeNames names_;
  const std::string prefix_;
  int levels_ = 0;
};

bool is_tiny(VaeNames names) { return names == VaeNames::Taesd || names == VaeNames::DiffusersTiny; }

AutoencoderConfig infer_tiny(const NamedTensors& tensors, bool has_encoder, const std::string& file) {
  const std::string first = has_encoder ? "encoder.0.weight" : "decoder.1.weight";
  DYDIT_CHECK(tensors.size(first, 0) == kTinyWidth,
              "{}: this tiny autoencoder is of another layout than TAESD's (taesana's?): {} has {} outputs, "
              "not {}; it is not supported",
              file, tensors.spelled(first), tensors.size(first, 0), kTinyWidth);
  const int channels = has_encoder ? tensors.size("encoder.14.weight", 0) : tensors.size(first, 1);
  return tiny_config(channels,
                     tensors.has(has_encoder ? "encoder.11.pool.0.weight" : "decoder.3.pool.0.weight"));
}

// Of SD3's and FLUX.1's numbers only the person knows.
void guess_scale(AutoencoderConfig& config, RawAutoencoder& raw) {
  DYDIT_CHECK(config.latent_channels == 4,
              "{}: comes without a configuration, and {} latent channels{} do not tell its scaling factor "
              "(SD3 has 1.5305 and a shift of 0.0609, FLUX.1 0.3611 and 0.1159); {}",
              raw.name, config.latent_channels, config.quant_conv ? "" : " without quant convolutions",
              kName);
  config.scale.scaling = kStableDiffusionScaling;
  raw.notes.push_back(fmt::format(
      "comes without a configuration: taken for Stable Diffusion's, scaling factor {}, {} groups (SDXL's has "
      "0.13025); {} otherwise",
      kStableDiffusionScaling, config.norm_groups, kName));
}

AutoencoderConfig infer_kl(const NamedTensors& tensors, RawAutoencoder& raw) {
  AutoencoderConfig config;
  config.channels.clear();
  const auto resnet = [](int level, int j) {
    return fmt::format("encoder.down_blocks.{}.resnets.{}.conv1.weight", level, j);
  };
  do {
    config.channels.push_back(tensors.size(resnet(static_cast<int>(config.channels.size()), 0), 0));
  } while (config.channels.size() < kMaxVaeLevels &&
           tensors.has(resnet(static_cast<int>(config.channels.size()), 0)));
  config.layers = 1;
  while (config.layers < kMaxResnets && tensors.has(resnet(0, config.layers))) ++config.layers;
  config.latent_channels = tensors.size("decoder.conv_in.weight", 1);
  config.quant_conv = tensors.has("quant_conv.weight");
  config.post_quant_conv = tensors.has("post_quant_conv.weight");
  config.mid_attention = tensors.has("encoder.mid_block.attentions.0.to_q.weight");
  config.norm_groups = kDefaultNormGroups;
  for (const int channels : config.channels) {
    DYDIT_CHECK(
        channels % kDefaultNormGroups == 0,
        "{}: comes without a configuration, and the usual {} groups do not divide its {} channels; {}",
        raw.name, kDefaultNormGroups, channels, kName);
  }
  guess_scale(config, raw);
  return config;
}

// kl-f16 and its like.
void check_levels_without_attention(const RawAutoencoder& raw, std::string_view prefix) {
  for (const char* blocks : {"encoder.down.", "decoder.up."}) {
    const std::string before = std::string(prefix) + blocks;
    for (auto it = raw.tensors.lower_bound(before); it != raw.tensors.end() && it->first.starts_with(before);
         ++it) {
      DYDIT_CHECK(it->first.find(".attn.", before.size()) == std::string::npos,
                  "{}: {} is attention inside a level (as kl-f16 and kl-f32 have it), which is not supported",
                  raw.name, printable(it->first));
    }
  }
}

void check_square(const NamedTensors& tensors, const RawAutoencoder& raw) {
  for (const char* name : {"quant_conv.weight", "post_quant_conv.weight"}) {
    if (!tensors.has(name)) continue;
    DYDIT_CHECK(tensors.size(name, 0) == tensors.size(name, 1),
                "{}: {} has shape {}: embed_dim is not z_channels, which is not supported", raw.name,
                tensors.spelled(name), shape_text(tensors.at(name).shape));
  }
}

// Checks tensors against the layers; what is left is no part of the network.
class Checker {
 public:
  Checker(const NamedTensors& tensors, const RawAutoencoder& raw) : tensors_(tensors), raw_(raw) {}

  void take(const std::string& name, const std::vector<int64_t>& wanted) {
    const std::string key = tensors_.spelled(name);
    const TensorView& view = tensors_.at(name);
    std::vector<int64_t> shape = view.shape;
    // Linears that were saved as 1x1 convolutions.
    if (wanted.size() == 2 && shape.size() == 4 && shape[2] == 1 && shape[3] == 1) shape.resize(2);
    DYDIT_CHECK(shape == wanted, "{}: {} has shape {}, expected {} by {}", raw_.name, key,
                shape_text(view.shape), shape_text(wanted),
                raw_.config_name.empty() ? "the other tensors" : raw_.config_name);
    const at::Tensor tensor = to_tensor(view, raw_.memory);
    DYDIT_CHECK(at::isFloatingType(tensor.scalar_type()), "{}: {} is {}, expected a floating-point tensor",
                raw_.name, key, dtype_name(view.dtype));
    DYDIT_CHECK(is_finite(tensor), "{}: {} holds NaN or infinity; the autoencoder is broken", raw_.name, key);
    weights_.emplace(name, tensor.reshape(wanted));
    taken_.insert(key);
  }

  // Names below the prefix that are no layer's may be passed over in a checkpoint of training: a loss,
  // averages.
  std::vector<std::string> left_over(std::string_view prefix, bool of_training) const {
    std::vector<std::string> passed;
    for (const auto& [key, view] : raw_.tensors) {
      if (taken_.contains(key)) continue;
      const bool below = key.starts_with(prefix);
      const std::string_view bare = std::string_view(key).substr(below ? prefix.size() : 0);
      const bool layer = below && std::any_of(kRoots.begin(), kRoots.end(),
                                              [&](std::string_view root) { return bare.starts_with(root); });
      DYDIT_CHECK(!layer && (of_training || !below), "{}: tensor {} belongs to no part of this autoencoder",
                  raw_.name, printable(key));
      passed.push_back(key);
    }
    return passed;
  }

  Weights weights() && { return std::move(weights_); }

 private:
  const NamedTensors& tensors_;
  const RawAutoencoder& raw_;
  Weights weights_;
  std::set<std::string> taken_;
};

std::string format_of(const RawAutoencoder& raw, VaeNames names, std::string_view prefix) {
  std::string spelling = "diffusers' names";
  if (names == VaeNames::OldDiffusers) spelling = "diffusers' old names";
  if (names == VaeNames::Ldm) spelling = "ldm's names";
  if (names == VaeNames::Taesd) spelling = "taesd";
  if (!prefix.empty()) spelling += fmt::format(" ({})", prefix);
  return fmt::format("{}, {}", raw.container, spelling);
}

}  // namespace

AutoencoderFile understand_autoencoder(RawAutoencoder raw) {
  const std::string prefix(prefix_of(raw.tensors));
  const std::optional<VaeNames> names = names_below(raw.tensors, prefix, raw.name);
  if (!names || raw.tensors.contains("bn.running_mean")) refuse_tensors(raw.tensors, raw.name);
  NamedTensors tensors(raw, *names, prefix);
  AutoencoderFile file;
  const bool tiny = is_tiny(*names);
  const auto has_half = [&](const char* first) { return !tiny || tensors.has(first); };
  file.has_encoder = has_half("encoder.0.weight");
  file.has_decoder = has_half("decoder.1.weight");
  if (tiny) {
    file.config = infer_tiny(tensors, file.has_encoder, raw.name);
  } else {
    check_levels_without_attention(raw, prefix);
    check_square(tensors, raw);
    if (!raw.config) file.config = infer_kl(tensors, raw);
  }
  if (raw.config) {
    DYDIT_CHECK(raw.config->kind == (tiny ? AutoencoderKind::Tiny : AutoencoderKind::Kl),
                "{}: is of {}, but the tensors of {} are named as one of {}", raw.config_name,
                tiny ? "AutoencoderKL" : "AutoencoderTiny", raw.name, tiny ? "TAESD's" : "AutoencoderKL");
    raw.config->pool = file.config.pool;
    file.config = *raw.config;
  }
  tensors.set_levels(file.config.channels.size());

  Checker checker(tensors, raw);
  for (const VaeLayer& layer : autoencoder_layers(file.config)) {
    if (!(half_of(layer.name) == VaeHalf::Encoder ? file.has_encoder : file.has_decoder)) continue;
    checker.take(layer.name + ".weight", layer.weight);
    if (layer.bias) checker.take(layer.name + ".bias", {layer.weight[0]});
  }
  const std::vector<std::string> passed = checker.left_over(prefix, *names == VaeNames::Ldm);
  if (!passed.empty())
    raw.notes.push_back(fmt::format("passed over {} tensor{} of other parts ({}{})", passed.size(),
                                    passed.size() == 1 ? "" : "s", printable(passed[0], 60),
                                    passed.size() == 1 ? "" : ", ..."));
  file.path = raw.name;
  file.format = format_of(raw, *names, prefix);
  file.weights = std::move(checker).weights();
  file.notes = std::move(raw.notes);
  file.sha256 = raw.sha256.get();
  file.files = std::move(raw.files);
  return file;
}

void AutoencoderFile::check_unchanged() const {
  for (const auto& file : files) file->check_unchanged();
}

}  // namespace dydit
