// Names as they come: wrapped by DDP, torch.compile and FSDP, below the attribute of a trainer, twice in one
// file. A set is what lies below a name that ends in one of kPatchWeights.
#include <algorithm>
#include <array>
#include <set>
#include <string_view>

#include <fmt/ranges.h>

#include "dydit/io/text.h"
#include "dydit/io/torch_file.h"
#include "dydit/model/checkpoint_parts.h"

namespace dydit {
namespace {

// Parts of names that wrappers add anywhere in them.
constexpr std::array<std::string_view, 4> kWrappers = {"module", "_orig_mod", "_fsdp_wrapped_module",
                                                       "_checkpoint_wrapped_module"};
constexpr size_t kShown = 3;

// "a.module.b" -> "a.b", and what was left out.
std::string unwrapped(std::string_view name, std::set<std::string_view>& left_out) {
  std::string out;
  while (true) {
    const size_t dot = name.find('.');
    const std::string_view part = name.substr(0, dot);
    if (dot == name.npos) return out.append(part);
    const auto wrapper = std::find(kWrappers.begin(), kWrappers.end(), part);
    if (wrapper == kWrappers.end()) {
      out.append(part).push_back('.');
    } else {
      left_out.insert(*wrapper);
    }
    name.remove_prefix(dot + 1);
  }
}

// "3 tensors ("a", "b", "c")", with an ellipsis for more than a few.
std::string counted(const std::vector<std::string>& names, const char* what) {
  std::vector<std::string> shown;
  for (const std::string& name : names) {
    if (shown.size() < kShown) shown.push_back(printable(name, 60));
  }
  return fmt::format("{} {}{} ({}{})", names.size(), what, names.size() == 1 ? "" : "s",
                     fmt::join(shown, ", "), names.size() > kShown ? ", ..." : "");
}

void take_counters(TensorViews& tensors, std::vector<std::string>& notes) {
  std::vector<std::string> counters;
  std::erase_if(tensors, [&](const auto& entry) {
    const bool counter = entry.second.numel() <= 1 && is_counter_name(entry.first);
    if (counter) counters.push_back(entry.first);
    return counter;
  });
  if (!counters.empty()) notes.push_back(fmt::format("passed over {}", counted(counters, "counter")));
}

// Whether a name goes on with a level of patch sizes, whose tensors are those of a model in small.
bool ends_in_level(std::string_view prefix) {
  constexpr std::string_view kLevels = "levels.";
  if (!prefix.ends_with('.')) return false;
  prefix.remove_suffix(1);
  const size_t digits = prefix.find_last_not_of("0123456789");
  return digits != prefix.npos && digits + 1 < prefix.size() &&
         prefix.substr(0, digits + 1).ends_with(kLevels);
}

// What stands before the anchor in each name that ends in it.
std::set<std::string> prefixes_of(const TensorViews& tensors) {
  std::set<std::string> prefixes;
  for (const auto& [name, view] : tensors) {
    for (const std::string_view anchor : kPatchWeights) {
      if (!name.ends_with(anchor)) continue;
      const std::string prefix = name.substr(0, name.size() - anchor.size());
      if (prefix.empty() || (prefix.ends_with('.') && !ends_in_level(prefix))) prefixes.insert(prefix);
    }
  }
  return prefixes;
}

// The longest prefix that the name has; nothing when it has none.
const std::string* prefix_of(const std::string& name, const std::set<std::string>& prefixes) {
  const std::string* longest = nullptr;
  for (const std::string& prefix : prefixes) {
    if (name.starts_with(prefix) && (!longest || prefix.size() > longest->size())) longest = &prefix;
  }
  return longest;
}

WeightsChoice choice_of(const std::string& key, const TensorViews& tensors) {
  WeightsChoice choice;
  choice.key = key;
  choice.tensors = tensors.size();
  for (const auto& [name, view] : tensors) choice.parameters += view.numel();
  return choice;
}

}  // namespace

std::vector<WeightSet> make_weight_sets(const std::string& key, bool averaged, TensorViews tensors) {
  constexpr size_t kMaxPrefixes = 64;
  WeightSet whole;
  whole.averaged = averaged;
  take_counters(tensors, whole.notes);
  TensorViews bare;
  std::set<std::string_view> wrappers;
  for (const auto& [name, view] : tensors) bare.emplace(unwrapped(name, wrappers), view);
  // Names that differ in a wrapper alone are two sets in one; they stay as they are.
  const bool unwrap = !wrappers.empty() && bare.size() == tensors.size();
  if (unwrap) tensors = std::move(bare);
  const std::set<std::string> prefixes = prefixes_of(tensors);
  if (prefixes.empty() || prefixes.size() > kMaxPrefixes) {
    whole.choice = choice_of(key, tensors);
    whole.tensors = std::move(tensors);
    return {std::move(whole)};
  }
  if (unwrap) whole.notes.push_back(fmt::format("names are read without {}", fmt::join(wrappers, ", ")));

  std::map<std::string, TensorViews> groups;
  std::vector<std::string> others;
  for (auto& [name, view] : tensors) {
    if (const std::string* prefix = prefix_of(name, prefixes)) {
      groups[*prefix].emplace(name.substr(prefix->size()), std::move(view));
    } else {
      others.push_back(name);
    }
  }
  std::vector<WeightSet> sets;
  for (auto& [prefix, group] : groups) {
    WeightSet set = whole;
    const std::string bare = prefix.empty() ? "plain" : prefix.substr(0, prefix.size() - 1);
    const std::string below = groups.size() == 1 ? "" : bare;
    set.averaged = averaged || is_average_key(bare);
    set.choice = choice_of(key + (key.empty() || below.empty() ? "" : ".") + below, group);
    set.tensors = std::move(group);
    if (!prefix.empty()) set.notes.push_back(fmt::format("names are read without {}", printable(prefix, 60)));
    if (!others.empty())
      set.notes.push_back(fmt::format("passed over {} of other names", counted(others, "tensor")));
    sets.push_back(std::move(set));
  }
  std::stable_sort(sets.begin(), sets.end(),
                   [](const WeightSet& a, const WeightSet& b) { return a.averaged > b.averaged; });
  return sets;
}

void name_ours(WeightSet& set, const std::string& name) {
  set.layout = layout_of(set.tensors);
  if (set.layout == Layout::DiT) return;
  set.depth = count_blocks(set.tensors, set.layout, name);
  const LayoutNames names(set.layout, set.depth);
  TensorViews ours;
  for (auto& [theirs, view] : set.tensors) ours.emplace(names.ours(theirs), std::move(view));
  DYDIT_CHECK(ours.size() == set.tensors.size(), "{}: has tensors under the names of two layouts, {} and dit",
              name, kLayoutNames[set.layout]);
  set.tensors = std::move(ours);
}

bool holds_model(const WeightSet& set) {
  return std::any_of(kPatchWeights.begin(), kPatchWeights.end(),
                     [&](std::string_view name) { return set.tensors.contains(std::string(name)); });
}

std::string list_choices(const std::vector<WeightsChoice>& choices) {
  std::vector<std::string> lines;
  for (const WeightsChoice& choice : choices) {
    lines.push_back(choice.fault.empty()
                        ? fmt::format("'{}' ({} tensors, {:.2f} M parameters)", printable(choice.key, 60),
                                      choice.tensors, static_cast<double>(choice.parameters) / 1e6)
                        : fmt::format("'{}' (unusable)", printable(choice.key, 60)));
  }
  return fmt::format("{}", fmt::join(lines, ", "));
}

std::string guess_model(const TensorViews& tensors) {
  struct Mark {
    std::string_view part;
    const char* what;
  };
  constexpr const char* kAutoencoder = "an autoencoder (VAE), which --vae takes";
  // The first that a name holds; from the particular to the general.
  constexpr std::array kMarks = {
      Mark{"lora_A", "LoRA weights without their model"},
      Mark{"lora_down", "LoRA weights without their model"},
      Mark{"exp_avg", "a training state (its model lies beside it)"},
      Mark{"sideblocks", "an MDT"},
      Mark{"en_inblocks", "an MDT"},
      Mark{"decoder_blocks", "a masked DiT"},
      Mark{"in_blocks.", "a U-ViT"},
      Mark{"caption_projection", "a PixArt or another model of texts"},
      Mark{"adaln_single", "a PixArt"},
      Mark{"t_block.", "a PixArt"},
      Mark{"y_embedder.y_proj", "a PixArt"},
      Mark{"double_blocks.", "a Flux-like model of texts"},
      Mark{"joint_blocks.", "an MMDiT of texts"},
      Mark{"projectors.", "a SiT trained with REPA"},
      Mark{"w12.weight", "a LightningDiT (SwiGLU)"},
      Mark{"quant_conv", kAutoencoder},
      Mark{"decoder.conv_in", kAutoencoder},
      Mark{"decoder.up_blocks", kAutoencoder},
      Mark{"13.conv.4.", kAutoencoder},  // TAESD's, of either half
      Mark{"text_model.", "a text encoder (CLIP)"},
      Mark{"SelfAttention", "a text encoder (T5)"},
      Mark{"self_attn.", "a language model"},
      Mark{"input_blocks.", "a UNet"},
      Mark{"down_blocks.", "a UNet"},
      Mark{"transformer_blocks.", "a transformer of diffusers; name its folder, which holds config.json"},
      Mark{"cls_token", "an image classifier (ViT)"},
      Mark{"layer1.0.", "an image classifier (ResNet)"}};
  const bool whole = tensors.contains(std::string(kPatchWeights[0]));
  for (const auto& [name, view] : tensors) {
    if (!whole && name.ends_with(".lora.B"))
      return " It seems to be adapters without their model; dydit convert --base puts them onto it.";
  }
  for (const Mark& mark : kMarks) {
    for (const auto& [name, view] : tensors) {
      if (name.find(mark.part) != name.npos) return fmt::format(" It seems to be {}.", mark.what);
    }
  }
  return "";
}

}  // namespace dydit
