// Families that call the same tensors by other names: a file's names become ours when it is read, and again
// theirs in messages and when a file of theirs is written.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "dydit/io/tensor_view.h"
#include "dydit/model/config.h"

namespace dydit {

/// UViT: baofff/U-ViT. SkipDiT: DiT's own, with skip_norms and skip_linears beside the blocks.
enum class Layout { DiT, UViT, SkipDiT };
inline constexpr EnumNames<Layout, 3> kLayoutNames = {
    "layout", {{"dit", Layout::DiT}, {"uvit", Layout::UViT}, {"skip-dit", Layout::SkipDiT}}};

/// By the names that no other layout has.
Layout layout_of(const TensorViews& tensors);
/// The layout that files of this family have.
Layout layout_of(const DiTConfig& config);

/// Names that a set of weights ends in, one of which every model has: that of the patch embedding.
inline constexpr std::array<std::string_view, 2> kPatchWeights = {"x_embedder.proj.weight",
                                                                  "patch_embed.proj.weight"};

/// Both ways between a layout's names and ours, of a model of `depth` blocks.
class LayoutNames {
 public:
  LayoutNames(Layout layout, int depth) : layout_(layout), depth_(depth) {}

  std::string ours(const std::string& theirs) const;
  std::string theirs(const std::string& ours) const;

 private:
  Layout layout_;
  int depth_;
};

/// The blocks of a set in its layout's names. Throws Error that begins with `name` where they cannot be a
/// model's: halves of a U-ViT that differ, an odd number of blocks with skips.
int count_blocks(const TensorViews& tensors, Layout layout, const std::string& name);

}  // namespace dydit
