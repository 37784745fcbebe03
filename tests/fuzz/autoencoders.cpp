#include "autoencoders.h"

#include <nlohmann/json.hpp>

#include "dydit/vae/config.h"
#include "dydit/vae/layers.h"
#include "tests/support/pickle_builder.h"

namespace dydit::fuzz {
namespace {

namespace pickle = test::pickle;
using nlohmann::json;

const std::string kFile = "FILE";
constexpr int64_t kStorage = 64 * 64 * 9;  // elements of the largest tensor; all begin where it does

volatile size_t sink;

void read_config(Bytes bytes) {
  std::vector<std::string> notes;
  const AutoencoderConfig config =
      parse_autoencoder_config({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, kFile, notes);
  sink = autoencoder_config_to_json(config).dump().size();
  sink = autoencoder_layers(config).size() + static_cast<size_t>(decode_macs(config, 8, 8));
}

void read_weights(Bytes bytes) { sink = parse_autoencoder(bytes, kFile).weights.size(); }

void wrap(std::string& bytes) {
  bytes = test::build_zip({{"m/data.pkl", bytes},
                           {"m/byteorder", "little"},
                           {"m/data/0", std::string(kStorage * sizeof(float), '\0')},
                           {"m/version", "3\n"}});
}

std::string tensor(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size() - 1; i-- > 0;) strides[i] = strides[i + 1] * shape[i + 1];
  return pickle::tensor({.sizes = shape, .strides = strides, .numel = kStorage});
}

// `cut` characters of our names are left out: TAESD's halves lie in files of their own.
std::string state_dict(const AutoencoderConfig& config, VaeNames names, const std::string& prefix,
                       VaeHalf half, bool both, size_t cut = 0) {
  std::vector<std::string> items;
  for (const VaeLayer& layer : autoencoder_layers(config)) {
    if (!both && half_of(layer.name) != half) continue;
    const std::string name =
        prefix + spelled(names, layer.name, static_cast<int>(config.channels.size())).substr(cut);
    items.insert(items.end(), {pickle::text(name + ".weight"), tensor(layer.weight)});
    if (layer.bias) items.insert(items.end(), {pickle::text(name + ".bias"), tensor({layer.weight[0]})});
  }
  return pickle::ordered_dict(items);
}

std::vector<std::string> weight_seeds() {
  AutoencoderConfig config;
  config.channels = {32, 32};
  config.layers = 1;
  const std::string ldm = state_dict(config, VaeNames::Ldm, "first_stage_model.", VaeHalf::Encoder, true);
  return {pickle::pickle_of(pickle::dict({pickle::text("state_dict"), ldm})),
          pickle::pickle_of(state_dict(config, VaeNames::OldDiffusers, "", VaeHalf::Encoder, true)),
          pickle::pickle_of(state_dict(config, VaeNames::Diffusers, "vae.", VaeHalf::Encoder, true)),
          pickle::pickle_of(
              state_dict(tiny_config(4, false), VaeNames::DiffusersTiny, "", VaeHalf::Encoder, true)),
          pickle::pickle_of(state_dict(tiny_config(32, true), VaeNames::Taesd, "", VaeHalf::Decoder, false,
                                       std::string_view("decoder.").size()))};
}

}  // namespace

std::vector<Target> autoencoder_targets() {
  AutoencoderConfig playground;
  playground.scale = {0.5, 0, {1, 2, 3, 4}, {1, 2, 3, 4}};
  return {{.name = "vae-config",
           .seeds = {autoencoder_config_to_json(AutoencoderConfig{}).dump(),
                     autoencoder_config_to_json(playground).dump(),
                     autoencoder_config_to_json(tiny_config(4, false)).dump()},
           .tokens = {"\"scaling_factor\":",
                      "\"shift_factor\":",
                      "\"latents_mean\":[",
                      "\"sample_size\":[",
                      "\"block_out_channels\":[",
                      "\"AutoencoderTiny\"",
                      "\"new\":",
                      "{",
                      "}",
                      "[",
                      "]",
                      "\"",
                      ":",
                      ",",
                      "null",
                      "true",
                      "1e9",
                      "-1",
                      "0.0",
                      "1e-9",
                      "16777216",
                      "\\u0000",
                      "\\ud800"},
           .hostile = {{"a deep factor",
                        [] {
                          return R"({"_class_name":"AutoencoderKL","scaling_factor":)" +
                                 std::string(500'000, '[');
                        }},
                       {"a hundred thousand levels",
                        [] {
                          std::string text = R"({"_class_name":"AutoencoderKL","block_out_channels":[32)";
                          for (int i = 0; i < 100'000; ++i) text += ",32";
                          return text + "]}";
                        }}},
           .read = read_config},
          {.name = "vae-weights",
           .seeds = weight_seeds(),
           .tokens = {"first_stage_model.",
                      "vae.",
                      "loss.",
                      "model_ema.",
                      "encoder.",
                      "decoder.",
                      "mid.",
                      "down.",
                      "up.",
                      "attn_1.",
                      "mid_block.",
                      "to_q",
                      "query",
                      "quant_conv",
                      "layers.0.weight",
                      ".conv.0.weight",
                      "pool.",
                      "0",
                      "9",
                      "K\1",
                      "R",
                      "b",
                      "(",
                      "t",
                      "}",
                      "u",
                      "N",
                      "."},
           .hostile = {},
           .read = read_weights,
           .finish = wrap,
           .when = Finish::Always}};
}

}  // namespace dydit::fuzz
