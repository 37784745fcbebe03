#include "dydit/engine/cpu/modulation.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <ATen/ops/tensor.h>

#include "dydit/model/embeddings.h"

namespace dydit::cpu {
namespace {

constexpr size_t kModulationBytes = size_t{64} << 20;

float silu(float x) { return x / (1.0f + std::exp(-x)); }

void sort_unique(auto& values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
}

}  // namespace

std::span<const float* const> Modulation::of(std::span<const Key> keys, Team& team) {
  if (std::any_of(keys.begin(), keys.end(), [&](const Key& key) { return find(key) == nullptr; })) {
    hold(keys);
    try {
      compute(team);
    } catch (...) {
      held_.clear();
      throw;
    }
  }
  found_.resize(keys.size());
  std::transform(keys.begin(), keys.end(), found_.begin(), [&](const Key& key) { return find(key); });
  return found_;
}

const float* Modulation::find(const Key& key) const {
  const auto found = std::lower_bound(held_.begin(), held_.end(), key);
  if (found == held_.end() || *found != key) return nullptr;
  return modulations_.as<float>() + (found - held_.begin()) * size_;
}

// `keys`, then the same labels at the timesteps that come next, whole steps as long as they fit.
void Modulation::hold(std::span<const Key> keys) {
  std::vector<Key> step(keys.begin(), keys.end());
  sort_unique(step);
  const size_t most = kModulationBytes / (size_ * sizeof(float));
  held_.clear();
  std::vector<Key> held = step;
  while (!step.empty() && held.size() + step.size() <= most) {
    std::vector<Key> next;
    for (const Key& key : step) {
      const auto at = std::find(order_.begin(), order_.end(), key.timestep);
      if (at != order_.end() && at + 1 != order_.end()) next.push_back({at[1], key.label});
    }
    step = std::move(next);
    held.insert(held.end(), step.begin(), step.end());
  }
  sort_unique(held);
  held_ = std::move(held);
}

void Modulation::compute(Team& team) {
  std::vector<int> timesteps;
  for (const Key& key : held_) {
    if (timesteps.empty() || timesteps.back() != key.timestep) timesteps.push_back(key.timestep);
  }
  embed(timesteps, team);
  const int rows = static_cast<int>(held_.size());
  conditions_.reserve(static_cast<size_t>(rows) * row_ * sizeof(float));
  modulations_.reserve(rows * size_ * sizeof(float));
  auto* conditions = conditions_.as<float>();
  size_t t = 0;
  for (int r = 0; r < rows; ++r) {
    if (timesteps[t] != held_[r].timestep) ++t;
    const float* time = t_emb_.data() + t * C_;
    const float* label = model_.labels.data_ptr<float>() + held_[r].label * C_;
    for (int c = 0; c < C_; ++c) conditions[int64_t{r} * row_ + c] = silu(time[c] + label[c]);
  }
  panels_ = model_.ada_panels;
  multiply(model_.ada.back(), {.a = conditions, .lda = row_, .out = modulations_.as<float>(), .ldo = size_},
           rows, team);
}

// t_emb_ <- embeddings of all `timesteps` at once; a row does not depend on the others.
void Modulation::embed(std::span<const int> timesteps, Team& team) {
  const int T = static_cast<int>(timesteps.size());
  const at::Tensor frequencies =
      timestep_frequencies(at::tensor(std::vector<int64_t>(timesteps.begin(), timesteps.end())),
                           model_.config().frequency_divisor);
  hidden_.assign(static_cast<size_t>(T) * row_ + 1, 0.0f);
  t_emb_.resize(static_cast<size_t>(T) * C_);
  panels_.clear();
  model_.t_in.add_panels(0, 0, panels_);
  multiply(model_.t_in,
           {.a = frequencies.data_ptr<float>(),
            .lda = kFrequencyEmbeddingSize,
            .out = hidden_.data(),
            .ldo = row_},
           T, team);
  for (float& value : hidden_) value = silu(value);
  panels_.clear();
  model_.t_out.add_panels(0, 0, panels_);
  multiply(model_.t_out, {.a = hidden_.data(), .lda = row_, .out = t_emb_.data(), .ldo = C_}, T, team);
}

void Modulation::multiply(const PackedLinear& weights, const Gemm& gemm, int rows, Team& team) {
  run_product(team, weights, panels_, gemm, rows, expanded_);
}

}  // namespace dydit::cpu
