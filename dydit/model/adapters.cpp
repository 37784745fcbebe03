// Adapters: their mathematics, and files that hold them alone.
#include "dydit/model/adapters.h"

#include <cmath>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/io/text.h"
#include "dydit/model/checkpoint_parts.h"
#include "dydit/model/edit.h"
#include "dydit/model/embeddings.h"

namespace dydit {

bool is_adapter_parameter(const std::string& name) {
  return name.find(".lora.") != std::string::npos || name.find(".lora_alpha.") != std::string::npos;
}

std::string adapter_text(const AdapterConfig& adapter) {
  if (adapter.kind == AdapterKind::None) return std::string(kAdapterNames[adapter.kind]);
  const std::string experts =
      adapter.kind == AdapterKind::Lora
          ? ""
          : fmt::format(", {} experts on {}", adapter.experts, kAdapterMixNames[adapter.mix]);
  return fmt::format("{}, rank {}{}, scale {}",
                     adapter.kind == AdapterKind::Lora ? "LoRA" : "TD-LoRA (our form)", adapter.rank, experts,
                     adapter.scale);
}

at::Tensor mixed(const at::Tensor& matrices, const at::Tensor& shares) {
  if (matrices.dim() == 2) return matrices;
  if (!shares.defined()) return matrices.squeeze(0);
  return at::matmul(shares, matrices.flatten(1)).view({shares.size(0), matrices.size(1), matrices.size(2)});
}

at::Tensor low_rank_update(const at::Tensor& A, const at::Tensor& B, const at::Tensor& shares, double scale) {
  return at::matmul(mixed(B, shares), mixed(A, shares)) * scale;
}

at::Tensor low_rank_output(const at::Tensor& x, const at::Tensor& A, const at::Tensor& B,
                           const at::Tensor& shares, double scale) {
  const auto times = [&](const at::Tensor& rows, const at::Tensor& matrices) {
    return at::matmul(rows, mixed(matrices, shares).to(x.scalar_type()).transpose(-2, -1));
  };
  return times(times(x, A), B) * scale;
}

Mixing mixing_of(const Checkpoint& checkpoint) {
  constexpr int kTimes = 64;  // in the middle of as many parts
  const DiTConfig& config = checkpoint.config;
  std::vector<double> times;
  for (int i = 0; i < kTimes; ++i) {
    const double share = (i + 0.5) / kTimes;
    times.push_back(config.objective.continuous() ? time_at(config.objective, share)
                                                  : std::floor(share * kNumTrainTimesteps));
  }
  const at::Tensor t_emb = embed_timesteps(checkpoint, at::tensor(times, at::kDouble));
  Mixing result;
  for (int l = 0; l < config.depth; ++l) {
    const at::Tensor shares =
        at::softmax(linear(checkpoint, fmt::format("blocks.{}.lora_alpha", l), t_emb), 1);
    const at::Tensor of_quarters = at::special_entr(shares).sum(1).view({kQuarters, -1}).mean(1);
    for (int q = 0; q < kQuarters; ++q)
      result.entropy[q] += of_quarters[q].item<double>() / (std::log(config.adapter.experts) * config.depth);
    result.range += (shares.amax(0) - shares.amin(0)).mean().item<double>() / config.depth;
  }
  return result;
}

std::string base_identity(const Checkpoint& base) {
  return base.sha256 + (base.weights_key.empty() ? "" : ", " + base.weights_key);
}

void save_adapters(const std::filesystem::path& path, const Checkpoint& checkpoint, at::ScalarType dtype) {
  DYDIT_USAGE_CHECK(checkpoint.config.adapter.kind != AdapterKind::None,
                    "{}: has no adapters that a file could hold alone", checkpoint.path.string());
  Checkpoint trained = checkpoint;
  std::erase_if(trained.weights, [](const auto& entry) {
    return !is_adapter_parameter(entry.first) && !is_router_parameter(entry.first);
  });
  save_checkpoint(path, trained, dtype);
}

Checkpoint put_adapters(const Checkpoint& base, const std::filesystem::path& path) {
  RawCheckpoint raw = read_raw(path);
  const std::string at = base.path.string();
  WeightSet& set = raw.sets.front();
  const auto stated = stated_adapter(raw);
  DYDIT_CHECK(stated && !holds_model(set),
              "{}: is no file of adapters alone, which dydit convert --adapters-only writes", raw.name);
  DYDIT_CHECK(stated->base == base_identity(base),
              "{}: its adapters were trained on weights of sha256 {}, and {} is {}; they fit no other base",
              raw.name, printable(stated->base), at, base_identity(base));
  DYDIT_CHECK(base.config.adapter.kind == AdapterKind::None && !base.config.is_dynamic(),
              "{}: has {} already; adapters alone go onto a static model without any", at,
              base.config.is_dynamic() ? "routers" : "adapters");
  const auto order = raw.metadata.find(kOrderNote);
  const bool reordered = order != raw.metadata.end() && order->second == "magnitude";
  Weights frozen = reordered ? reorder_by_importance(base).weights : base.weights;
  for (auto& [name, tensor] : frozen) {
    tensor = tensor.contiguous();
    DYDIT_CHECK(set.tensors.emplace(name, to_view(tensor)).second, "{}: holds {}, a tensor of its base",
                raw.name, name);
  }
  raw.memory =
      std::make_shared<const std::pair<Weights, std::shared_ptr<const void>>>(std::move(frozen), raw.memory);
  Checkpoint result = understand(std::move(raw), {});
  result.path = path;
  result.files.insert(result.files.end(), base.files.begin(), base.files.end());
  return result;
}

}  // namespace dydit
