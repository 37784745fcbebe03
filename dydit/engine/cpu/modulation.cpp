#include "dydit/engine/cpu/modulation.h"

#include <algorithm>
#include <cmath>
#include <functional>
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

// Each once: what comes after the first of two equal ones is what is wanted.
void Modulation::expect(std::vector<Visit> visits) {
  order_.clear();
  for (const Visit& visit : visits) {
    if (std::find(order_.begin(), order_.end(), visit) == order_.end()) order_.push_back(visit);
  }
}

std::span<const float* const> Modulation::of(std::span<const Key> keys, Team& team) {
  if (std::any_of(keys.begin(), keys.end(), [&](const Key& key) { return find(key) < 0; })) {
    hold(keys);
    try {
      compute(team);
    } catch (...) {
      held_.clear();
      throw;
    }
  }
  found_.clear();
  times_.clear();
  for (const Key& key : keys) {
    const int64_t row = find(key);
    found_.push_back(model_.constant.empty() ? modulations_.as<float>() + row * size_
                                             : model_.constant.data());
    times_.push_back(t_emb_.data() + int64_t{time_rows_[row]} * C_);
  }
  return found_;
}

int64_t Modulation::find(const Key& key) const {
  const auto found = std::lower_bound(held_.begin(), held_.end(), key);
  return found == held_.end() || !(*found == key) ? -1 : found - held_.begin();
}

// `keys`, then the same labels at the timesteps that come next, whole steps as long as they fit.
void Modulation::hold(std::span<const Key> keys) {
  std::vector<Key> step(keys.begin(), keys.end());
  sort_unique(step);
  const size_t floats = model_.constant.empty() ? size_ : C_,
               most = kModulationBytes / (floats * sizeof(float));
  held_.clear();
  std::vector<Key> held = step;
  while (!step.empty() && held.size() + step.size() <= most) {
    std::vector<Key> next;
    for (const Key& key : step) {
      const auto at = std::find(order_.begin(), order_.end(), key.visit);
      if (at != order_.end() && at + 1 != order_.end()) next.push_back({at[1], key.label});
    }
    step = std::move(next);
    held.insert(held.end(), step.begin(), step.end());
  }
  sort_unique(held);
  held_ = std::move(held);
}

void Modulation::compute(Team& team) {
  std::vector<Visit> visits;
  time_rows_.clear();
  for (const Key& key : held_) {
    if (visits.empty() || visits.back() != key.visit) visits.push_back(key.visit);
    time_rows_.push_back(static_cast<int>(visits.size()) - 1);
  }
  embed(visits, team);
  if (!model_.constant.empty()) return;
  const int rows = static_cast<int>(held_.size());
  conditions_.reserve(static_cast<size_t>(rows) * row_ * sizeof(float));
  modulations_.reserve(rows * size_ * sizeof(float));
  auto* conditions = conditions_.as<float>();
  for (int r = 0; r < rows; ++r) {
    const float* time = t_emb_.data() + int64_t{time_rows_[r]} * C_;
    const float* label = model_.labels.data_ptr<float>() + held_[r].label * C_;
    for (int c = 0; c < C_; ++c) conditions[int64_t{r} * row_ + c] = silu(time[c] + label[c]);
  }
  panels_ = model_.ada_panels;
  multiply(model_.ada.back(), {.a = conditions, .lda = row_, .out = modulations_.as<float>(), .ldo = size_},
           rows, team);
}

// t_emb_ <- embeddings of all `visits` at once; a row does not depend on the others.
void Modulation::embed(std::span<const Visit> visits, Team& team) {
  const DiTConfig& config = model_.config();
  const int T = static_cast<int>(visits.size()), row = even(config.time_hidden());
  std::vector<double> timesteps;
  for (const Visit& visit : visits) timesteps.push_back(visit.timestep);
  const at::Tensor frequencies = timestep_frequencies(at::tensor(timesteps, at::kDouble),
                                                      config.time_frequencies, config.frequency_divisor);
  t_emb_.resize(static_cast<size_t>(T) * C_);
  if (!config.time_mlp) {
    std::copy_n(frequencies.data_ptr<float>(), t_emb_.size(), t_emb_.begin());
    return;
  }
  hidden_.assign(static_cast<size_t>(T) * row + 1, 0.0f);
  panels_.clear();
  model_.t_in.add_panels(0, 0, panels_);
  multiply(
      model_.t_in,
      {.a = frequencies.data_ptr<float>(), .lda = config.time_frequencies, .out = hidden_.data(), .ldo = row},
      T, team);
  for (float& value : hidden_) value = silu(value);
  panels_.clear();
  model_.t_out.add_panels(0, 0, panels_);
  multiply(model_.t_out, {.a = hidden_.data(), .lda = row, .out = t_emb_.data(), .ldo = C_}, T, team);
  for (int i = 0; i < T; ++i) {
    const std::vector<float>& of_level = model_.levels[visits[i].level].embedding;
    std::transform(of_level.begin(), of_level.end(), t_emb_.begin() + int64_t{i} * C_,
                   t_emb_.begin() + int64_t{i} * C_, std::plus<>());
  }
}

void Modulation::multiply(const PackedLinear& weights, const Gemm& gemm, int rows, Team& team) {
  run_product(team, weights, panels_, gemm, rows, expanded_);
}

}  // namespace dydit::cpu
