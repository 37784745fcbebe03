// Checkpoint -> file: safetensors, a torch file, a folder of diffusers.
#include <ATen/ATen.h>

#include "dydit/base/error.h"
#include "dydit/io/diffusers.h"
#include "dydit/io/safetensors.h"
#include "dydit/io/torch_writer.h"
#include "dydit/model/checkpoint_parts.h"
#include "dydit/model/embeddings.h"
#include "dydit/model/quantization.h"

namespace dydit {
namespace {

// As they go to a file: pos_embed stays float32.
Weights stored_weights(const Checkpoint& checkpoint, at::ScalarType dtype) {
  Weights stored;
  for (const auto& [name, tensor] : checkpoint.weights) {
    const bool as_it_is = tensor.scalar_type() == at::kChar || is_quantization_part(name);
    stored[name] = as_it_is ? tensor.contiguous()
                            : tensor.to(name.ends_with("pos_embed") ? at::kFloat : dtype).contiguous();
  }
  return stored;
}

// Other programs' files have no place for them.
void refuse_adapters(const Checkpoint& checkpoint) {
  DYDIT_USAGE_CHECK(
      checkpoint.config.adapter.kind == AdapterKind::None,
      "{}: has adapters, which files of other programs have no place for; --merge makes weights of "
      "a LoRA's",
      checkpoint.path.string());
}

TensorViews views_of(const Weights& weights) {
  TensorViews views;
  for (const auto& [name, tensor] : weights) views[name] = to_view(tensor);
  return views;
}

}  // namespace

void save_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint, at::ScalarType dtype) {
  save_checkpoint(path, checkpoint, dtype, Durability::Normal);
}

void save_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint, at::ScalarType dtype,
                     Durability durability) {
  const Weights stored = stored_weights(checkpoint, dtype);
  write_safetensors(path, views_of(stored), metadata_of(checkpoint), durability,
                    [&] { checkpoint.check_unchanged(); });
}

void save_torch_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint,
                           at::ScalarType dtype) {
  const Weights stored = stored_weights(checkpoint, dtype);
  write_torch_file(path, views_of(stored), config_to_json(checkpoint.config), metadata_of(checkpoint),
                   [&] { checkpoint.check_unchanged(); });
}

void save_in_layout(const std::filesystem::path& path, const Checkpoint& checkpoint, at::ScalarType dtype,
                    Layout layout, bool torch) {
  const DiTConfig& config = checkpoint.config;
  DYDIT_USAGE_CHECK(layout_of(config) == layout, "{}: is a {}, which files of the layout {} cannot hold",
                    checkpoint.path.string(), model_name(config), kLayoutNames[layout]);
  DYDIT_USAGE_CHECK(
      config.join != Join::Residual,
      "{}: adds its long skips to the stream, which files in the authors' names cannot say; --to "
      "safetensors or torch can",
      checkpoint.path.string());
  refuse_adapters(checkpoint);
  DYDIT_USAGE_CHECK(!torch || !checkpoint.few_step,
                    "{}: is distilled to few steps, which a bare state dict cannot say; leave out --to, or "
                    "take a name that ends in .safetensors",
                    checkpoint.path.string());
  const LayoutNames names(layout, config.depth);
  Weights stored;
  for (auto& [name, tensor] : stored_weights(checkpoint, dtype)) stored[names.theirs(name)] = tensor;
  const auto check = [&] { checkpoint.check_unchanged(); };
  if (torch) {
    write_torch_file(path, views_of(stored), nlohmann::json(), {}, check);
  } else {
    write_safetensors(path, views_of(stored), metadata_of(checkpoint), Durability::Normal, check);
  }
}

void save_diffusers_folder(const std::filesystem::path& path, const Checkpoint& checkpoint,
                           at::ScalarType dtype) {
  const DiTConfig& config = checkpoint.config;
  const std::string from = checkpoint.path.string();
  DYDIT_USAGE_CHECK(layout_of(config) == Layout::DiT && !config.objective.continuous(),
                    "{}: is a {}, and a diffusers folder is a DiT's", from, model_name(config));
  DYDIT_USAGE_CHECK(!config.is_dynamic(),
                    "{}: has routers, which a diffusers folder has no place for; --to static drops them",
                    from);
  DYDIT_USAGE_CHECK(config.levels() == 1,
                    "{}: has {} patch sizes, and a diffusers folder has a place for one", from,
                    config.levels());
  refuse_adapters(checkpoint);
  DYDIT_USAGE_CHECK(!checkpoint.few_step,
                    "{}: is distilled to few steps, which a diffusers folder has no place for", from);
  constexpr double kRounding = 5e-3;  // of a table stored in bfloat16
  const at::Tensor formula = sincos_pos_embed(config.hidden_size, config.grid());
  DYDIT_CHECK(
      (checkpoint.weights.at("pos_embed").to(at::kFloat) - formula).abs().max().item<double>() < kRounding,
      "{}: its pos_embed is not the sin-cos table, the only one that diffusers' DiT has", from);
  const Weights stored = stored_weights(checkpoint, dtype);
  write_diffusers_folder(path, views_of(stored), config_to_json(config),
                         [&] { checkpoint.check_unchanged(); });
}

}  // namespace dydit
