// See the header.
#include "dydit/engine/torch/slots.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>

#include <ATen/ATen.h>

#include "dydit/base/objective.h"

namespace dydit::aten {
namespace {

constexpr int kClockSamples = 250;  // of the objective's clock; a table has 1000 times

std::vector<int> most_often_first(const std::vector<int>& counts) {
  std::vector<int> order(counts.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return counts[a] > counts[b]; });
  return order;
}

std::vector<at::Tensor> with_bias(std::vector<at::Tensor> layers, const at::Tensor& bias) {
  if (bias.defined()) layers.push_back(bias);
  return layers;
}

}  // namespace

std::vector<PartOrder> part_orders(const Checkpoint& checkpoint) {
  const DiTConfig& config = checkpoint.config;
  const size_t L = config.depth, H = config.num_heads;
  std::vector<std::vector<int>> heads(L, std::vector<int>(H, 0)), groups = heads;
  if (config.width_routers) {
    std::vector<double> timesteps;
    const double last = last_time(config.objective);
    for (int i = 0; i < kClockSamples; ++i) {
      const double t = last * i / (kClockSamples - 1);
      timesteps.push_back(config.objective.continuous() ? t : std::floor(t));
    }
    for (const StepPlan& step : make_width_plan(checkpoint, timesteps, Mode::Dynamic).steps) {
      for (size_t l = 0; l < L; ++l) {
        for (size_t part = 0; part < H; ++part) {
          heads[l][part] += step.blocks[l].heads[part];
          groups[l][part] += step.blocks[l].groups[part];
        }
      }
    }
  }
  std::vector<PartOrder> orders;
  for (size_t l = 0; l < L; ++l) orders.push_back({most_often_first(heads[l]), most_often_first(groups[l])});
  return orders;
}

PartSlots::PartSlots(std::vector<at::Tensor> all, std::vector<int> order)
    : all_(std::move(all)), order_(std::move(order)) {}

int64_t PartSlots::hold(std::span<const uint8_t> on) {
  std::vector<int> wanted;
  std::copy_if(order_.begin(), order_.end(), std::back_inserter(wanted), [&](int part) { return on[part]; });
  if (wanted.size() == order_.size()) return 0;
  int64_t copied = 0;
  const auto copy = [&](size_t place, int part) {
    for (size_t which = 0; which < all_.size(); ++which) {
      slots_[which][place].copy_(all_[which][part]);
      copied += static_cast<int64_t>(all_[which][part].nbytes());
    }
    held_[place] = part;
  };
  if (slots_.empty()) {
    for (const at::Tensor& layer : all_) slots_.push_back(at::empty_like(layer));
    held_.assign(order_.size(), -1);
    for (size_t place = 0; place < order_.size(); ++place) copy(place, order_[place]);
    copied = 0;  // as much as packing does
  }
  for (size_t place = 0; place < wanted.size(); ++place) {
    if (held_[place] != wanted[place]) copy(place, wanted[place]);
  }
  return copied;
}

at::Tensor PartSlots::layer(size_t which, int parts) const {
  const bool whole = parts == static_cast<int>(order_.size());
  return whole ? all_[which] : slots_[which].narrow(0, 0, parts);
}

BlockSlots::BlockSlots(const BlockWeights& all, const PartOrder& order)
    : heads_(with_bias({all.qkv, all.proj}, all.qkv_bias), order.heads),
      groups_({all.fc1, all.fc2, all.fc1_bias}, order.groups),
      has_qkv_bias_(all.qkv_bias.defined()),
      proj_bias_(all.proj_bias),
      fc2_bias_(all.fc2_bias) {}

at::Tensor BlockSlots::qkv_bias(int heads) const {
  return has_qkv_bias_ ? heads_.layer(2, heads).flatten() : at::Tensor();
}

}  // namespace dydit::aten
