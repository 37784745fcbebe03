#include "dydit/model/layouts.h"

#include <optional>

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"

namespace dydit {
namespace {

// Names that begin with one, in a model's own order; blocks are told apart below.
struct Names {
  std::string_view theirs, ours;
};
constexpr std::array kUViT = {Names{"patch_embed.proj.", "x_embedder.proj."},
                              Names{"label_emb.", "y_embedder.embedding_table."},
                              Names{"time_embed.0.", "t_embedder.mlp.0."},
                              Names{"time_embed.2.", "t_embedder.mlp.2."},
                              Names{"norm.", "final_layer.norm."},
                              Names{"decoder_pred.", "final_layer.linear."},
                              Names{"final_layer.", "final_conv."}};
constexpr std::string_view kBlocks = "blocks.", kIn = "in_blocks.", kMiddle = "mid_block.",
                           kOut = "out_blocks.", kSkipNorms = "skip_norms.", kSkipLinears = "skip_linears.",
                           kLinear = "linear.";

// "3.attn.qkv.weight" behind a prefix -> 3 and "attn.qkv.weight".
struct Numbered {
  int number;
  std::string rest;
};
std::optional<Numbered> numbered(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  const size_t dot = name.find('.');
  if (dot == name.npos) return std::nullopt;
  const auto number = parse_number<int>(name.substr(0, dot));
  if (!number || *number < 0) return std::nullopt;
  return Numbered{*number, std::string(name.substr(dot + 1))};
}

std::string uvit_to_ours(const std::string& name, int half) {
  if (const auto in = numbered(name, kIn)) return fmt::format("{}{}.{}", kBlocks, in->number, in->rest);
  if (const auto out = numbered(name, kOut))
    return fmt::format("{}{}.{}", kBlocks, half + 1 + out->number, out->rest);
  if (name.starts_with(kMiddle)) return fmt::format("{}{}.{}", kBlocks, half, name.substr(kMiddle.size()));
  for (const Names& names : kUViT) {
    if (name.starts_with(names.theirs)) return std::string(names.ours) + name.substr(names.theirs.size());
  }
  return name;
}

std::string uvit_to_theirs(const std::string& name, int half) {
  if (const auto block = numbered(name, kBlocks)) {
    if (block->number < half) return fmt::format("{}{}.{}", kIn, block->number, block->rest);
    if (block->number == half) return fmt::format("{}{}", kMiddle, block->rest);
    return fmt::format("{}{}.{}", kOut, block->number - half - 1, block->rest);
  }
  for (const Names& names : kUViT) {
    if (name.starts_with(names.ours)) return std::string(names.theirs) + name.substr(names.ours.size());
  }
  return name;
}

constexpr std::string_view kSkipNorm = "skip_norm.", kSkipLinear = "skip_linear.";

std::string skip_to_ours(const std::string& name, int half) {
  if (const auto norm = numbered(name, kSkipNorms))
    return fmt::format("{}{}.{}{}", kBlocks, half + norm->number, kSkipNorm, norm->rest);
  if (const auto linear = numbered(name, kSkipLinears); linear && linear->rest.starts_with(kLinear))
    return fmt::format("{}{}.{}{}", kBlocks, half + linear->number, kSkipLinear,
                       linear->rest.substr(kLinear.size()));
  return name;
}

std::string skip_to_theirs(const std::string& name, int half) {
  const auto block = numbered(name, kBlocks);
  if (!block || block->number < half) return name;
  const int number = block->number - half;
  if (block->rest.starts_with(kSkipNorm))
    return fmt::format("{}{}.{}", kSkipNorms, number, block->rest.substr(kSkipNorm.size()));
  if (block->rest.starts_with(kSkipLinear))
    return fmt::format("{}{}.{}{}", kSkipLinears, number, kLinear, block->rest.substr(kSkipLinear.size()));
  return name;
}

int count(const TensorViews& tensors, std::string_view prefix) {
  int number = 0;
  while (tensors.contains(fmt::format("{}{}.attn.qkv.weight", prefix, number))) ++number;
  return number;
}

}  // namespace

Layout layout_of(const TensorViews& tensors) {
  if (tensors.contains(fmt::format("{}attn.qkv.weight", kMiddle))) return Layout::UViT;
  const auto skip = tensors.lower_bound(std::string(kSkipLinears));
  const bool skips = skip != tensors.end() && skip->first.starts_with(kSkipLinears);
  return skips ? Layout::SkipDiT : Layout::DiT;
}

Layout layout_of(const DiTConfig& config) {
  if (config.time_token) return Layout::UViT;
  return config.join == Join::None ? Layout::DiT : Layout::SkipDiT;
}

std::string LayoutNames::ours(const std::string& theirs) const {
  const int half = depth_ / 2;
  if (layout_ == Layout::UViT) return uvit_to_ours(theirs, half);
  return layout_ == Layout::SkipDiT ? skip_to_ours(theirs, half) : theirs;
}

std::string LayoutNames::theirs(const std::string& ours) const {
  const int half = depth_ / 2;
  if (layout_ == Layout::UViT) return uvit_to_theirs(ours, half);
  return layout_ == Layout::SkipDiT ? skip_to_theirs(ours, half) : ours;
}

int count_blocks(const TensorViews& tensors, Layout layout, const std::string& name) {
  if (layout == Layout::UViT) {
    const int in = count(tensors, kIn), out = count(tensors, kOut);
    DYDIT_CHECK(
        in == out && in > 0,
        "{}: a U-ViT of {} blocks before the one in the middle and {} behind it; long skips pair them, so "
        "there must be as many of both",
        name, in, out);
    return 2 * in + 1;
  }
  const int depth = count(tensors, kBlocks);
  DYDIT_CHECK(layout != Layout::SkipDiT || depth % 2 == 0,
              "{}: a Skip-DiT of {} blocks; long skips pair them, so there must be an even number", name,
              depth);
  return depth;
}

}  // namespace dydit
