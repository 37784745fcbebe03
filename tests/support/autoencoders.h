// Autoencoders for tests: of ../shared/golden/vae, and with random weights.
#pragma once

#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "dydit/base/noise.h"
#include "dydit/io/safetensors.h"
#include "dydit/vae/autoencoder.h"
#include "tests/support/shared.h"

namespace dydit::test {

/// Tensor `name` of golden/vae/`file`.
inline at::Tensor vae_vector(const std::string& file, const std::string& name) {
  const SafetensorsFile read = read_safetensors(shared_path("golden/vae/" + file));
  return to_tensor(read.tensors.at(name), read.file).clone();
}

inline AutoencoderConfig kl_config(std::vector<int> channels, int layers, int norm_groups, int z) {
  AutoencoderConfig config;
  config.channels = std::move(channels);
  config.layers = layers;
  config.norm_groups = norm_groups;
  config.latent_channels = z;
  return config;
}

/// kl4 or kl16 of golden/vae, which must be there.
inline AutoencoderFile golden_kl(const std::string& name) {
  return load_autoencoder(shared_path("golden/vae/" + name + "/vae"));
}

/// data/taef2_*.pth, which must be there.
inline AutoencoderFile taef2() {
  return load_autoencoder(shared_path("data/taef2_encoder.pth").string() + "," +
                          shared_path("data/taef2_decoder.pth").string());
}

/// Fills a file with the tensors of an AutoencoderKL of its configuration.
class RandomKl {
 public:
  explicit RandomKl(const AutoencoderConfig& config) {
    file_.config = config;
    file_.path = "random";
    file_.has_encoder = file_.has_decoder = true;
    const std::vector<int>& c = config.channels;
    const int z = config.latent_channels;
    conv("encoder.conv_in", 3, c[0]);
    for (size_t i = 0; i < c.size(); ++i) {
      const std::string level = "encoder.down_blocks." + std::to_string(i);
      for (int j = 0; j < config.layers; ++j)
        resnet(level + ".resnets." + std::to_string(j), j > 0 ? c[i] : c[i > 0 ? i - 1 : 0], c[i]);
      if (i + 1 < c.size()) conv(level + ".downsamplers.0.conv", c[i], c[i]);
    }
    middle("encoder.mid_block", c.back());
    norm("encoder.conv_norm_out", c.back());
    conv("encoder.conv_out", c.back(), 2 * z);
    if (config.quant_conv) conv("quant_conv", 2 * z, 2 * z, 1);
    if (config.post_quant_conv) conv("post_quant_conv", z, z, 1);
    const std::vector<int> r(c.rbegin(), c.rend());
    conv("decoder.conv_in", z, r[0]);
    middle("decoder.mid_block", r[0]);
    for (size_t i = 0; i < r.size(); ++i) {
      const std::string level = "decoder.up_blocks." + std::to_string(i);
      for (int j = 0; j < config.layers + 1; ++j)
        resnet(level + ".resnets." + std::to_string(j), j > 0 ? r[i] : r[i > 0 ? i - 1 : 0], r[i]);
      if (i + 1 < r.size()) conv(level + ".upsamplers.0.conv", r[i], r[i]);
    }
    norm("decoder.conv_norm_out", r.back());
    conv("decoder.conv_out", r.back(), 3);
  }
  AutoencoderFile file() const { return file_; }

 private:
  at::Tensor random(at::IntArrayRef shape, double scale) {
    at::Tensor values = at::empty(shape);
    fill_normal({values.data_ptr<float>(), static_cast<size_t>(values.numel())}, /*seed=*/7, index_++, 0);
    return values * scale;
  }
  void conv(const std::string& at, int in, int out, int kernel = 3) {
    file_.weights[at + ".weight"] =
        random({out, in, kernel, kernel}, 1 / std::sqrt(double(in) * kernel * kernel));
    file_.weights[at + ".bias"] = random({out}, .1);
  }
  void norm(const std::string& at, int C) {
    file_.weights[at + ".weight"] = random({C}, .2) + 1;
    file_.weights[at + ".bias"] = random({C}, .1);
  }
  void resnet(const std::string& at, int in, int out) {
    norm(at + ".norm1", in);
    conv(at + ".conv1", in, out);
    norm(at + ".norm2", out);
    conv(at + ".conv2", out, out);
    if (in != out) conv(at + ".conv_shortcut", in, out, 1);
  }
  void middle(const std::string& at, int C) {
    resnet(at + ".resnets.0", C, C);
    norm(at + ".attentions.0.group_norm", C);
    for (const char* name : {"to_q", "to_k", "to_v", "to_out.0"}) {
      const std::string key = at + ".attentions.0." + name;
      file_.weights[key + ".weight"] = random({C, C}, 1 / std::sqrt(double(C)));
      file_.weights[key + ".bias"] = random({C}, .1);
    }
    resnet(at + ".resnets.1", C, C);
  }

  AutoencoderFile file_;
  uint64_t index_ = 0;
};

inline at::Tensor random_map(at::IntArrayRef shape, uint64_t index) {
  at::Tensor values = at::empty(shape);
  fill_normal({values.data_ptr<float>(), static_cast<size_t>(values.numel())}, /*seed=*/5, index, 0);
  return values;
}

/// The largest difference over the largest value.
inline double apart(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b.to(at::kDouble)).abs().max() / b.to(at::kDouble).abs().max()).item<double>();
}

}  // namespace dydit::test
