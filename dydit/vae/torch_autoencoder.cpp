// See the header. Names of weights are those of dydit/vae/networks.cpp, which computes the same on the CPU.
#include "dydit/vae/torch_autoencoder.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/base/row_pool.h"
#include "dydit/engine/torch/cuda.h"

namespace dydit::vae {
namespace {

constexpr double kKlEps = 1e-6, kTinyEps = 1e-5;
constexpr int kTinyGroups = 4;
constexpr double kWorkingMaps =
    6;  // of the largest, that lie in memory at a time: convolutions' buffers, too

class TorchAutoencoder final : public Autoencoder {
 public:
  TorchAutoencoder(const AutoencoderFile& file, const AutoencoderOptions& options)
      : Autoencoder(file.config),
        device_(*options.device),
        dtype_(options.dtype),
        threads_(options.threads),
        stages_(options.stages) {
    if (device_.is_cuda()) {
      aten::check_device(aten::cuda_facts(device_.index()), device_, dtype_);
      aten::set_products(options.batch_invariant);
    }
    for (const auto& [name, weight] : file.weights) {
      const bool wanted =
          name.starts_with("decoder.") || name == "post_quant_conv.weight" || name == "post_quant_conv.bias"
              ? options.decoder
              : options.encoder;
      // Norms are float32 in every mode.
      if (wanted) weights_[name] = weight.to(device_, weight.dim() == 1 ? at::kFloat : dtype_);
    }
  }

  at::Tensor moments(const at::Tensor& images) const override {
    check(images, "images", 3);
    return each(images, [&](const at::Tensor& image) {
      return is_tiny() ? tiny_encoder(image * 0.5 + 0.5) : kl_encoder(image);
    });
  }

  at::Tensor decode(const at::Tensor& z) const override {
    check(z, "latents", config_.latent_channels);
    return each(z, [&](const at::Tensor& latent) {
      return is_tiny() ? tiny_decoder(at::tanh(latent / 3) * 3) * 2 - 1 : kl_decoder(latent);
    });
  }

  at::Tensor decode_in_tiles(const at::Tensor& /*z*/, int /*tile*/) const override {
    throw UsageError(
        fmt::format("--vae-tiling approximate: is the CPU's; on {} take none or diffusers", device_.str()));
  }

  double encode_bytes(int height, int width) const override { return map_bytes(height, width); }
  double decode_bytes(int height, int width) const override {
    return map_bytes(height * config_.factor(), width * config_.factor());
  }

 private:
  bool is_tiny() const { return config_.kind == AutoencoderKind::Tiny; }
  bool has(const std::string& name) const { return weights_.contains(name); }
  at::Tensor find(const std::string& name) const {
    const auto found = weights_.find(name);
    return found == weights_.end() ? at::Tensor() : found->second;
  }

  // 0 on a GPU: whose memory is not what callers ask about.
  double map_bytes(int height, int width) const {
    if (!device_.is_cpu()) return 0;
    const double channels = is_tiny() ? find_width() : config_.channels[0];
    return kWorkingMaps * channels * height * width * sizeof(float);
  }
  double find_width() const {
    for (const auto& [name, weight] : weights_) {
      if (weight.dim() == 4) return static_cast<double>(weight.size(0));
    }
    return 0;
  }

  // One image after another: convolutions choose how to compute by the batch, and memory does not grow with
  // it.
  template <typename Fn>
  at::Tensor each(const at::Tensor& images, const Fn& fn) const {
    const LibTorchThreads threads(threads_);
    std::vector<at::Tensor> results;
    for (int64_t b = 0; b < images.size(0); ++b) {
      const c10::NoGradGuard guard;  // what comes out may be written to anywhere
      results.push_back(fn(images.narrow(0, b, 1).to(device_)).to(at::kFloat).cpu());
      DYDIT_CHECK(at::isfinite(results.back()).all().item<bool>(), "image {} of the batch: NaN or infinity{}",
                  b, at::isfinite(images[b]).all().item<bool>() ? "" : ", which it came with");
    }
    return at::cat(results);
  }

  at::Tensor stage(const std::string& name, const at::Tensor& x) const {
    if (stages_) stages_(name, x.to(at::kFloat).cpu());
    return x;
  }

  at::Tensor conv(const std::string& name, const at::Tensor& x, int64_t stride = 1) const {
    const at::Tensor& weight = weights_.at(name + ".weight");
    const int64_t pad = stride == 1 ? weight.size(2) / 2 : 0;
    const at::Tensor bias = find(name + ".bias");
    return at::conv2d(x.to(dtype_), weight, bias.defined() ? bias.to(dtype_) : bias, stride, pad);
  }
  at::Tensor norm(const std::string& name, const at::Tensor& x, int64_t groups, double eps) const {
    return at::group_norm(x.to(at::kFloat), groups, weights_.at(name + ".weight"),
                          weights_.at(name + ".bias"), eps);
  }
  at::Tensor normed_silu(const std::string& name, const at::Tensor& x) const {
    return at::silu(norm(name, x, config_.norm_groups, kKlEps));
  }
  static at::Tensor upsampled(const at::Tensor& x) {
    return at::upsample_nearest2d(x, {2 * x.size(2), 2 * x.size(3)});
  }

  at::Tensor resnet(const std::string& at, const at::Tensor& x) const {
    const at::Tensor h = conv(at + ".conv1", normed_silu(at + ".norm1", x)),
                     branch = conv(at + ".conv2", normed_silu(at + ".norm2", h));
    return (has(at + ".conv_shortcut.weight") ? conv(at + ".conv_shortcut", x) : x) + branch;
  }

  // One head over all pixels, in float32.
  at::Tensor attention(const std::string& at, const at::Tensor& x) const {
    const int64_t C = x.size(1), H = x.size(2), W = x.size(3);
    const at::Tensor rows =
        norm(at + ".group_norm", x, config_.norm_groups, kKlEps).flatten(2).transpose(1, 2);  // (1, H W, C)
    const auto linear = [&](const char* name, const at::Tensor& in) {
      const at::Tensor weight = weights_.at(at + name + ".weight").to(at::kFloat);
      return at::linear(in, weight.view({weight.size(0), weight.size(1)}),
                        weights_.at(at + name + ".bias").to(at::kFloat));
    };
    const at::Tensor out = at::scaled_dot_product_attention(linear(".to_q", rows).unsqueeze(1),
                                                            linear(".to_k", rows).unsqueeze(1),
                                                            linear(".to_v", rows).unsqueeze(1));
    return x + linear(".to_out.0", out.squeeze(1)).transpose(1, 2).reshape({1, C, H, W}).to(x.scalar_type());
  }

  at::Tensor middle(const std::string& of, const std::string& told, at::Tensor x) const {
    const std::string at = of + "mid_block.";
    x = stage(told + "mid.resnet0", resnet(at + "resnets.0", x));
    if (config_.mid_attention) x = stage(told + "mid.attn", attention(at + "attentions.0", x));
    return stage(told + "mid.resnet1", resnet(at + "resnets.1", x));
  }

  at::Tensor kl_encoder(const at::Tensor& image) const {
    const std::string at = "encoder.", told = "enc.";
    const size_t levels = config_.channels.size();
    at::Tensor x = stage(told + "conv_in", conv(at + "conv_in", image));
    for (size_t i = 0; i < levels; ++i) {
      const std::string level = at + "down_blocks." + std::to_string(i) + ".";
      for (int j = 0; j < config_.layers; ++j) {
        x = resnet(level + "resnets." + std::to_string(j), x);
        if (i == 0 && j == 0) stage(told + "down0.resnet0", x);
      }
      // Zeros below and to the right only, as diffusers has them.
      if (i + 1 < levels) x = conv(level + "downsamplers.0.conv", at::constant_pad_nd(x, {0, 1, 0, 1}), 2);
      stage(told + "down" + std::to_string(i), x);
    }
    x = middle(at, told, x);
    x = stage(told + "conv_out", conv(at + "conv_out", normed_silu(at + "conv_norm_out", x)));
    return config_.quant_conv ? conv("quant_conv", x) : x;
  }

  at::Tensor kl_decoder(const at::Tensor& latent) const {
    const std::string at = "decoder.", told = "dec.";
    const size_t levels = config_.channels.size();
    at::Tensor x = config_.post_quant_conv ? conv("post_quant_conv", latent) : latent;
    x = stage(told + "conv_in", conv(at + "conv_in", x));
    x = middle(at, told, x);
    for (size_t i = 0; i < levels; ++i) {
      const std::string level = at + "up_blocks." + std::to_string(i) + ".";
      for (int j = 0; j < config_.layers + 1; ++j) {
        x = resnet(level + "resnets." + std::to_string(j), x);
        if (i == 0 && j == 0) stage(told + "up0.resnet0", x);
      }
      if (i + 1 < levels) x = conv(level + "upsamplers.0.conv", upsampled(x));
      stage(told + "up" + std::to_string(i), x);
    }
    return stage(told + "conv_out", conv(at + "conv_out", normed_silu(at + "conv_norm_out", x)));
  }

  at::Tensor tiny_block(const std::string& at, at::Tensor x) const {
    if (config_.pool && has(at + ".pool.0.weight")) {
      const at::Tensor h = conv(at + ".pool.0", x);
      x = x + conv(at + ".pool.3", at::relu(norm(at + ".pool.1", h, kTinyGroups, kTinyEps)));
    }
    const at::Tensor h = at::relu(conv(at + ".conv.2", at::relu(conv(at + ".conv.0", x))));
    return at::relu(x + conv(at + ".conv.4", h));
  }

  at::Tensor tiny_encoder(const at::Tensor& image) const {
    const std::string at = "encoder.";
    at::Tensor x = tiny_block(at + "1", conv(at + "0", image));
    for (int n = 2; n <= 10; n += 4) {
      x = conv(at + std::to_string(n), at::constant_pad_nd(x, {1, 1, 1, 1}), 2);
      for (int b = 1; b <= 3; ++b) x = tiny_block(at + std::to_string(n + b), x);
    }
    return conv(at + "14", x);
  }

  at::Tensor tiny_decoder(const at::Tensor& latent) const {
    const std::string at = "decoder.";
    at::Tensor x = at::relu(conv(at + "1", latent));
    for (int n = 3; n <= 13; n += 5) {
      for (int b = 0; b < 3; ++b) x = tiny_block(at + std::to_string(n + b), x);
      x = conv(at + std::to_string(n + 4), upsampled(x));
    }
    return conv(at + "19", tiny_block(at + "18", x));
  }

  const at::Device device_;
  const at::ScalarType dtype_;
  const int threads_;
  const StageObserver stages_;
  Weights weights_;
};

}  // namespace

std::unique_ptr<const Autoencoder> make_torch_autoencoder(const AutoencoderFile& file,
                                                          const AutoencoderOptions& options) {
  return std::make_unique<TorchAutoencoder>(file, options);
}

}  // namespace dydit::vae
