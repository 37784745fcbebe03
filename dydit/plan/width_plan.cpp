// Routers run in blocks of a fixed number of rows, on one thread, so that a timestep's decisions never depend
// on its neighbours.
#include "dydit/plan/width_plan.h"

#include <algorithm>
#include <numeric>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "dydit/base/row_pool.h"
#include "dydit/model/embeddings.h"
#include "dydit/model/macs.h"

namespace dydit {
namespace {

constexpr int kRowsPerBlock = 32;

std::vector<uint8_t> open_parts(const float* logits, int num_parts) {
  std::vector<uint8_t> parts(num_parts, 1);  // the first has no router output: it is always on
  for (int j = 1; j < num_parts; ++j) parts[j] = logits[j - 1] > kGateThreshold;
  return parts;
}

// x (rows, in) through the linear layer `name` in float32.
at::Tensor linear(const Checkpoint& checkpoint, const std::string& name, const at::Tensor& x) {
  return at::linear(x, checkpoint.weights.at(name + ".weight").to(at::kFloat),
                    checkpoint.weights.at(name + ".bias").to(at::kFloat));
}

at::Tensor embed_timesteps(const Checkpoint& checkpoint, const at::Tensor& t) {
  const at::Tensor hidden = linear(checkpoint, "t_embedder.mlp.0", timestep_frequencies(t));
  return linear(checkpoint, "t_embedder.mlp.2", at::silu(hidden));
}

// Decides timesteps[first, first + kRowsPerBlock), the last block padded with its own last timestep.
void decide_rows(const Checkpoint& checkpoint, std::span<const int> timesteps, int first, WidthPlan& plan) {
  c10::InferenceMode guard;
  const int H = plan.config.num_heads, last = static_cast<int>(timesteps.size()) - 1;
  const at::Tensor t = at::empty({kRowsPerBlock}, at::kLong);
  for (int row = 0; row < kRowsPerBlock; ++row)
    t.data_ptr<int64_t>()[row] = timesteps[std::min(first + row, last)];
  const at::Tensor t_emb = embed_timesteps(checkpoint, t);
  for (int b = 0; b < plan.config.depth; ++b) {
    const at::Tensor heads = linear(checkpoint, fmt::format("blocks.{}.attn_rate.router", b), t_emb);
    const at::Tensor groups = linear(checkpoint, fmt::format("blocks.{}.mlp_rate.router", b), t_emb);
    for (int row = 0; row < kRowsPerBlock && first + row <= last; ++row) {
      BlockWidth& width = plan.steps[first + row].blocks[b];
      width.heads = open_parts(heads.data_ptr<float>() + row * (H - 1), H);
      width.groups = open_parts(groups.data_ptr<float>() + row * (H - 1), H);
    }
  }
}

// Adds to (prefixes, total) over the timesteps of one block and one kind of part.
void count_prefixes(const WidthPlan& plan, int block, std::vector<uint8_t> BlockWidth::*parts,
                    int64_t& prefixes, int64_t& total) {
  const int H = plan.config.num_heads;
  std::vector<int> times_on(H, 0), order(H);
  for (const StepPlan& step : plan.steps) {
    for (int h = 0; h < H; ++h) times_on[h] += (step.blocks[block].*parts)[h];
  }
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return times_on[a] > times_on[b]; });
  for (const StepPlan& step : plan.steps) {
    const auto& on = step.blocks[block].*parts;
    prefixes += std::is_sorted(order.begin(), order.end(), [&](int a, int b) { return on[a] > on[b]; });
    ++total;
  }
}

}  // namespace

int BlockWidth::active_heads() const { return std::accumulate(heads.begin(), heads.end(), 0); }
int BlockWidth::active_groups() const { return std::accumulate(groups.begin(), groups.end(), 0); }

WidthPlan make_width_plan(const Checkpoint& checkpoint, std::span<const int> timesteps, Mode mode) {
  const DiTConfig& config = checkpoint.config;
  WidthPlan plan;
  plan.config = config;
  plan.mode = config.is_dynamic() ? mode : Mode::Static;
  plan.route_tokens = plan.mode == Mode::Dynamic && config.token_routers;
  const std::vector<uint8_t> all(config.num_heads, 1);
  for (const int t : timesteps) {
    plan.steps.push_back({t, std::vector<BlockWidth>(config.depth, BlockWidth{all, all})});
  }
  if (plan.mode == Mode::Dynamic && config.width_routers) {
    RowPool one_thread(1);
    const int blocks = (static_cast<int>(timesteps.size()) + kRowsPerBlock - 1) / kRowsPerBlock;
    one_thread.run(blocks, [&](int i) { decide_rows(checkpoint, timesteps, i * kRowsPerBlock, plan); });
  }
  return plan;
}

int64_t required_macs(const WidthPlan& plan, int step, std::span<const int> tokens) {
  int64_t macs = fixed_macs(plan.config);
  if (plan.mode == Mode::Dynamic) macs += router_macs(plan.config);
  for (int b = 0; b < plan.config.depth; ++b) {
    const BlockWidth& width = plan.steps[step].blocks[b];
    macs += attention_macs(plan.config, width.active_heads());
    macs +=
        mlp_macs(plan.config, width.active_groups(), tokens.empty() ? plan.config.num_tokens() : tokens[b]);
  }
  return macs;
}

double nesting_share(const WidthPlan& plan) {
  int64_t prefixes = 0, total = 0;
  for (int b = 0; b < plan.config.depth; ++b) {
    count_prefixes(plan, b, &BlockWidth::heads, prefixes, total);
    count_prefixes(plan, b, &BlockWidth::groups, prefixes, total);
  }
  return total ? static_cast<double>(prefixes) / static_cast<double>(total) : 1.0;
}

}  // namespace dydit
