// See the header.
#include "dydit/engine/torch/conditioning.h"

#include <algorithm>
#include <limits>
#include <set>

#include <torch/torch.h>

#include "dydit/engine/torch/ops.h"

namespace dydit::aten {
namespace {

constexpr int64_t kCudaBytes = int64_t{512} << 20, kCpuBytes = int64_t{64} << 20;

int64_t row_floats(const DiTConfig& config) {
  const int64_t C = config.hidden_size;
  const int64_t modulation = config.modulation == Modulation::AdaLN ? (int64_t{6} * config.depth + 2) * C : 0;
  return modulation + config.extras() * C;
}

// As many as will be asked for and fit, never fewer than `rows`.
size_t table_rows(const DiTConfig& config, at::Device device, int64_t rows, int64_t asked) {
  const int64_t bytes = std::max<int64_t>(row_floats(config) * 4, 1);
  const int64_t fit = (device.is_cuda() ? kCudaBytes : kCpuBytes) / bytes;
  const int64_t wanted = std::max(std::min(fit, asked), rows);
  return static_cast<size_t>((wanted + kConditionedRows - 1) / kConditionedRows * kConditionedRows);
}

}  // namespace

Conditioning::Conditioning(const DiT& model, at::Device device) : model_(model), device_(device) {}

int64_t Conditioning::table_bytes(const DiTConfig& config, at::Device device, int64_t rows) {
  return static_cast<int64_t>(table_rows(config, device, rows, std::numeric_limits<int64_t>::max())) *
         row_floats(config) * 4;
}

Conditioned Conditioning::make(int64_t rows) const {
  const DiTConfig& config = model_->config;
  const int64_t C = config.hidden_size;
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device_);
  Conditioned made;
  if (config.modulation == Modulation::AdaLN) {
    made.blocks = at::empty({rows, config.depth, 6, C}, options);
    made.final = at::empty({rows, 2 * C}, options);
  }
  if (config.extras() > 0) made.front = at::empty({rows, config.extras(), C}, options);
  return made;
}

// The missing rows, then those that the coming visits will ask for with the labels of now.
std::vector<Conditioning::Key> Conditioning::next(const std::vector<Key>& missing,
                                                  const std::set<int64_t>& labels, size_t most) const {
  std::vector<Key> keys = missing;
  std::set<Key> listed(keys.begin(), keys.end());
  const Visit now = missing.back().first;
  for (auto visit = std::find(expected_.begin(), expected_.end(), now); visit != expected_.end(); ++visit) {
    for (const int64_t label : labels) {
      const Key key{*visit, label};
      if (keys.size() >= most) return keys;
      if (!places_.contains(key) && listed.insert(key).second) keys.push_back(key);
    }
  }
  return keys;
}

void Conditioning::fill(std::span<const Row> rows, Conditioned& out) {
  std::set<int64_t> labels;
  for (const Row& row : rows) labels.insert(row.label);
  std::vector<Key> missing;
  std::set<Key> listed;
  const auto key_of = [](const Row& row) { return Key{{row.step->timestep, row.step->level}, row.label}; };
  const auto look = [&] {
    missing.clear();
    listed.clear();
    for (const Row& row : rows) {
      const Key key = key_of(row);
      if (!places_.contains(key) && listed.insert(key).second) missing.push_back(key);
    }
  };
  look();
  if (places_.size() + missing.size() > capacity_) {
    places_.clear();
    // Twice as much as was too small, where that fits: others than those foreseen have come.
    const auto asked = static_cast<int64_t>(std::max(expected_.size() * labels.size(), 2 * capacity_));
    const size_t wanted = table_rows(model_->config, device_, static_cast<int64_t>(rows.size()), asked);
    if (wanted > capacity_) {
      table_ = make(static_cast<int64_t>(wanted));
      capacity_ = wanted;
    }
    look();
  }
  if (!missing.empty()) {
    const std::vector<Key> keys = next(missing, labels, capacity_ - places_.size());
    for (size_t i = 0; i < keys.size(); i += kConditionedRows)
      compute({keys.begin() + static_cast<std::ptrdiff_t>(i),
               keys.begin() + static_cast<std::ptrdiff_t>(std::min(i + kConditionedRows, keys.size()))});
  }
  std::vector<int64_t> wanted;
  for (const Row& row : rows) wanted.push_back(places_.at(key_of(row)));
  const at::Tensor index = to_device(at::tensor(wanted), device_);
  const int64_t B = static_cast<int64_t>(rows.size());
  for (const auto member : {&Conditioned::blocks, &Conditioned::final, &Conditioned::front}) {
    if (!(out.*member).defined()) continue;
    at::Tensor of_rows = (out.*member).narrow(0, 0, B);
    at::index_select_out(of_rows, table_.*member, 0, index);
  }
}

void Conditioning::compute(const std::vector<Key>& keys) {
  const DiTConfig& config = model_->config;
  const int64_t first = static_cast<int64_t>(places_.size()), R = kConditionedRows;
  const auto count = static_cast<int64_t>(keys.size());
  // The timestep's embedding is a level's, so keys of one level share a product's call; rows of others are
  // computed beside them and left.
  std::set<int> levels;
  for (const Key& key : keys) levels.insert(key.first.level);
  std::vector<double> timesteps;
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < R; ++i) {
    const Key& key = keys[static_cast<size_t>(std::min(i, count - 1))];
    timesteps.push_back(key.first.timestep);
    labels.push_back(key.second);
  }
  const at::Tensor t = to_device(at::tensor(timesteps, at::kDouble), device_),
                   y = to_device(at::tensor(labels), device_);
  for (const int level : levels) {
    std::vector<int64_t> of_level, places;
    for (int64_t i = 0; i < count; ++i) {
      if (keys[static_cast<size_t>(i)].first.level != level) continue;
      of_level.push_back(i);
      places.push_back(first + i);
    }
    const at::Tensor from = to_device(at::tensor(of_level), device_),
                     to = to_device(at::tensor(places), device_);
    const auto keep = [&](at::Tensor table, const at::Tensor& values) {
      table.index_copy_(0, to, values.index_select(0, from));
    };
    const auto [c, front] = model_->condition(model_->embed_timestep(t, level), y);
    if (front.defined()) keep(table_.front, front);
    if (!table_.blocks.defined()) continue;
    const at::Tensor activated = at::silu(c);
    for (int l = 0; l < config.depth; ++l) {
      at::Tensor ada = model_->blocks[l]->adaLN->forward(activated).view({R, 6, config.hidden_size});
      ada.select(1, 1).add_(1);  // the scales, as norm_modulate takes them
      ada.select(1, 4).add_(1);
      keep(table_.blocks.select(1, l), ada);
    }
    keep(table_.final, model_->final_adaLN->forward(activated));
  }
  for (int64_t i = 0; i < count; ++i) places_[keys[static_cast<size_t>(i)]] = first + i;
}

}  // namespace dydit::aten
