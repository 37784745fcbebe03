#include "dydit/vae/networks.h"

#include <ATen/ATen.h>

namespace dydit::vae {
namespace {

constexpr double kKlEps = 1e-6, kTinyEps = 1e-5;
constexpr int kTinyGroups = 4;

// Makes steps of the weights of a file.
class Builder {
 public:
  Builder(const AutoencoderFile& file, const Precision& precision, cpu::Arena& arena, Team& team)
      : config_(file.config), weights_(file.weights), precision_(precision), arena_(arena), team_(team) {}

  Network kl_encoder() {
    const std::vector<int>& c = config_.channels;
    const std::string at = "encoder.", stage = "enc.";
    conv_in(at, 3, c[0]).stage = stage + "conv_in";
    for (size_t i = 0; i < c.size(); ++i) {
      const std::string level = at + "down_blocks." + std::to_string(i) + ".";
      for (int j = 0; j < config_.layers; ++j)
        resnet(level + "resnets." + std::to_string(j), j > 0 || i == 0 ? c[i] : c[i - 1], c[i]).stage =
            i == 0 && j == 0 ? stage + "down0.resnet0" : "";
      if (i + 1 < c.size()) conv(level + "downsamplers.0.conv", down(c[i])).groups = config_.norm_groups;
      steps_.back().stage = stage + "down" + std::to_string(i);
    }
    middle(at, stage, c.back());
    const int moments = 2 * config_.latent_channels;
    conv_out(at, c.back(), moments).stage = stage + "conv_out";
    if (config_.quant_conv) conv("quant_conv", pixel(moments, moments)).bf16 = false;
    return whole();
  }

  Network kl_decoder() {
    const std::vector<int> r(config_.channels.rbegin(), config_.channels.rend());
    const int z = config_.latent_channels;
    const std::string at = "decoder.", stage = "dec.";
    if (config_.post_quant_conv) conv("post_quant_conv", pixel(z, z)).bf16 = false;
    conv_in(at, z, r[0]).stage = stage + "conv_in";
    middle(at, stage, r[0]);
    const size_t body = steps_.size();
    for (size_t i = 0; i < r.size(); ++i) {
      const std::string level = at + "up_blocks." + std::to_string(i) + ".";
      for (int j = 0; j < config_.layers + 1; ++j)
        resnet(level + "resnets." + std::to_string(j), j > 0 || i == 0 ? r[i] : r[i - 1], r[i]).stage =
            i == 0 && j == 0 ? stage + "up0.resnet0" : "";
      if (i + 1 < r.size())
        conv(level + "upsamplers.0.conv", {.in = r[i], .out = r[i], .upsample = true}).groups =
            config_.norm_groups;
      steps_.back().stage = stage + "up" + std::to_string(i);
    }
    conv_out(at, r.back(), 3).stage = stage + "conv_out";
    return Network(std::move(steps_), body);
  }

  Network tiny_encoder() {
    const std::string at = "encoder.";
    const int width = channels_out(at + "0");
    conv(at + "0", {.in = 3, .out = width});
    tiny_block(at + "1", width);
    for (int n = 2; n <= 10; n += 4) {
      conv(at + std::to_string(n), {.in = width, .out = width, .stride = 2});
      for (int b = 1; b <= 3; ++b) tiny_block(at + std::to_string(n + b), width);
    }
    conv(at + "14", {.in = width, .out = config_.latent_channels}).bf16 = false;
    return whole();
  }

  Network tiny_decoder() {
    const std::string at = "decoder.";
    const int width = channels_out(at + "1");
    conv(at + "1", {.in = config_.latent_channels, .out = width}).after = Activation::Relu;
    size_t body = 0;
    for (int n = 3; n <= 13; n += 5) {
      for (int b = 0; b < 3; ++b) tiny_block(at + std::to_string(n + b), width);
      if (n == 3) body = steps_.size();  // the only blocks with norms
      conv(at + std::to_string(n + 4), {.in = width, .out = width, .upsample = true});
    }
    tiny_block(at + "18", width);
    conv(at + "19", {.in = width, .out = 3}).bf16 = false;
    return Network(std::move(steps_), body);
  }

 private:
  Network whole() {
    const size_t all = steps_.size();
    return Network(std::move(steps_), all);
  }
  static ConvShape pixel(int in, int out) {
    return {.in = in, .out = out, .rows = kOneTap, .columns = kOneTap};
  }
  // Zeros below and to the right only, as diffusers' Downsample2D of autoencoders has them.
  static ConvShape down(int channels) {
    constexpr Extent kAfter = {3, 0, 1};
    return {.in = channels, .out = channels, .stride = 2, .rows = kAfter, .columns = kAfter};
  }
  at::Tensor weight(const std::string& name) const { return weights_.at(name); }
  at::Tensor bias(const std::string& name) const {
    const auto found = weights_.find(name);
    return found == weights_.end() ? at::Tensor() : found->second;
  }
  int channels_out(const std::string& name) const {
    return static_cast<int>(weight(name + ".weight").size(0));
  }

  // Products are of bfloat16 between the ends only: those have few channels, and their precision counts.
  Step& conv(const std::string& name, const ConvShape& shape, const at::Tensor& w, const at::Tensor& b) {
    constexpr int kFew = 32;
    Step step;
    step.name = name;
    step.bf16 = precision_.bf16_maps;
    step.conv = Conv(w, b, shape, precision_.bf16_products && shape.in >= kFew, arena_, team_);
    return steps_.emplace_back(std::move(step));
  }
  Step& conv(const std::string& name, const ConvShape& shape) {
    return conv(name, shape, weight(name + ".weight"), bias(name + ".bias"));
  }
  GroupNorm norm(const std::string& name, int groups, double eps) const {
    const auto values = [&](const char* what) {
      const at::Tensor v = weight(name + what).to(at::kFloat).contiguous();
      return std::vector<float>(v.const_data_ptr<float>(), v.const_data_ptr<float>() + v.numel());
    };
    return {groups, eps, values(".weight"), values(".bias")};
  }
  // A convolution of what norm and SiLU leave of its input.
  Step& normed_conv(const std::string& norm_name, const std::string& name, const ConvShape& shape) {
    Step& step = conv(name, shape);
    step.norm = norm(norm_name, config_.norm_groups, kKlEps);
    step.before = Activation::Silu;
    return step;
  }

  Step& conv_in(const std::string& at, int in, int out) {
    Step& step = conv(at + "conv_in", {.in = in, .out = out});
    step.groups = config_.norm_groups;
    return step;
  }

  Step& resnet(const std::string& at, int in, int out) {
    Step& first = normed_conv(at + ".norm1", at + ".conv1", {.in = in, .out = out});
    first.to = Slot::H;
    first.groups = config_.norm_groups;
    if (in != out) conv(at + ".conv_shortcut", pixel(in, out));
    Step& second = normed_conv(at + ".norm2", at + ".conv2", {.in = out, .out = out});
    second.from = Slot::H;
    second.add = true;
    second.groups = config_.norm_groups;
    return second;
  }

  void middle(const std::string& of, const std::string& stage, int C) {
    const std::string at = of + "mid_block.";
    resnet(at + "resnets.0", C, C).stage = stage + "mid.resnet0";
    if (config_.mid_attention) attention(at + "attentions.0", C).stage = stage + "mid.attn";
    resnet(at + "resnets.1", C, C).stage = stage + "mid.resnet1";
  }

  // In float32: one map at the lowest resolution.
  Step& attention(const std::string& at, int C) {
    const auto all = [&](const char* what) {
      return at::cat({weight(at + ".to_q" + what), weight(at + ".to_k" + what), weight(at + ".to_v" + what)});
    };
    Step& qkv = conv(at + ".to_q", pixel(C, 3 * C), all(".weight"), all(".bias"));
    qkv.to = Slot::H;
    qkv.norm = norm(at + ".group_norm", config_.norm_groups, kKlEps);
    qkv.bf16 = false;
    Step attend;
    attend.name = at;
    attend.from = attend.to = Slot::H;
    attend.attention = true;
    steps_.push_back(std::move(attend));
    Step& out = conv(at + ".to_out.0", pixel(C, C));
    out.from = Slot::H;
    out.add = true;
    out.groups = config_.norm_groups;
    return out;
  }

  Step& conv_out(const std::string& at, int in, int out) {
    Step& step = normed_conv(at + "conv_norm_out", at + "conv_out", {.in = in, .out = out});
    step.bf16 = false;
    return step;
  }

  void tiny_block(const std::string& at, int C) {
    if (config_.pool && weights_.contains(at + ".pool.0.weight")) {
      const int wide = channels_out(at + ".pool.0");
      Step& in = conv(at + ".pool.0", pixel(C, wide));
      in.to = Slot::H;
      in.groups = kTinyGroups;
      Step& out = conv(at + ".pool.3", pixel(wide, C));
      out.from = Slot::H;
      out.norm = norm(at + ".pool.1", kTinyGroups, kTinyEps);
      out.before = Activation::Relu;
      out.add = true;
    }
    Step& first = conv(at + ".conv.0", {.in = C, .out = C});
    first.to = Slot::H;
    first.after = Activation::Relu;
    Step& second = conv(at + ".conv.2", {.in = C, .out = C});
    second.from = second.to = Slot::H;
    second.after = Activation::Relu;
    Step& third = conv(at + ".conv.4", {.in = C, .out = C});
    third.from = Slot::H;
    third.add = true;
    third.after = Activation::Relu;
  }

  const AutoencoderConfig& config_;
  const Weights& weights_;
  const Precision precision_;
  cpu::Arena& arena_;
  Team& team_;
  std::vector<Step> steps_;
};

}  // namespace

Network make_encoder(const AutoencoderFile& file, const Precision& precision, cpu::Arena& arena, Team& team) {
  Builder builder(file, precision, arena, team);
  return file.config.kind == AutoencoderKind::Kl ? builder.kl_encoder() : builder.tiny_encoder();
}

Network make_decoder(const AutoencoderFile& file, const Precision& precision, cpu::Arena& arena, Team& team) {
  Builder builder(file, precision, arena, team);
  return file.config.kind == AutoencoderKind::Kl ? builder.kl_decoder() : builder.tiny_decoder();
}

}  // namespace dydit::vae
