#include "dydit/eval/loss.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/base/noise.h"
#include "dydit/diffusion/losses.h"
#include "dydit/diffusion/schedule.h"
#include "dydit/model/macs.h"

namespace dydit {
namespace {

// Image i is of group i mod 10, whose timesteps lie in the middle of the same tenth of every decile. A group
// shares them, and so its forwards. `thousandths` of the noise share: a table's timesteps.
constexpr int kGroups = 10, kDecileLength = kNumTrainTimesteps / kDeciles;
int thousandths_of(int group, int decile) {
  constexpr int tenth = kDecileLength / kGroups;
  return decile * kDecileLength + group * tenth + tenth / 2;
}
std::vector<double> timesteps_of(const Objective& objective, int group) {
  std::vector<double> timesteps;
  for (int d = 0; d < kDeciles; ++d)
    timesteps.push_back(
        time_at(objective, static_cast<double>(thousandths_of(group, d)) / kNumTrainTimesteps));
  return timesteps;
}

void check_data(const Dataset& dataset, const DiTConfig& config, const LossOptions& options) {
  DYDIT_USAGE_CHECK(options.num_images >= 1 && options.batch >= 1 && !options.seeds.empty(),
                    "{} images, batch {}, {} seeds: expected 1 or more of each", options.num_images,
                    options.batch, options.seeds.size());
  DYDIT_USAGE_CHECK(dataset.channels() == config.in_channels && dataset.side() == config.input_size,
                    "images {}x{}x{}: this model takes {}x{}x{}", dataset.channels(), dataset.side(),
                    dataset.side(), config.in_channels, config.input_size, config.input_size);
  for (int64_t i = 0; i < dataset.size(); ++i) {
    DYDIT_USAGE_CHECK(config.num_classes == 0 || dataset.label(i) < config.num_classes,
                      "image {} has label {}: this model has classes 0 to {}", i, dataset.label(i),
                      config.num_classes - 1);
  }
}

// Bytes that batches of `rows` images take at least.
double least_bytes(const Checkpoint& checkpoint, const LossOptions& options, int64_t rows) {
  const DiTConfig& config = checkpoint.config;
  const double images =
      3.0 * static_cast<double>(rows) * config.in_channels * config.input_size * config.input_size;
  return least_engine_bytes(options.engine, checkpoint, options.engine_options(), rows) +
         images * sizeof(float);  // x0, noise and x_t
}

void check_run_memory(const Checkpoint& checkpoint, const LossOptions& options, int64_t total) {
  check_memory(least_bytes(checkpoint, options, 1), model_name(checkpoint.config), "take a smaller model");
  const int64_t rows = std::min<int64_t>(options.batch, (total + kGroups - 1) / kGroups);
  check_memory(least_bytes(checkpoint, options, rows), fmt::format("a batch of {} images", rows),
               "take a smaller --batch");
}

// Images of one group, read once.
struct EvalBatch {
  std::vector<int64_t> images;  // of the data set; they key the noise
  std::vector<int64_t> labels;
  at::Tensor x0;  // (B, channels, side, side)
};

// Images first, first + 10, ... below `total`, `limit` of them at most. Latents are drawn once, by the seed.
EvalBatch read_batch(const Dataset& dataset, uint64_t seed, int64_t total, int64_t first, int limit) {
  EvalBatch batch;
  for (int64_t i = first; i < total && static_cast<int>(batch.images.size()) < limit; i += kGroups)
    batch.images.push_back(i * dataset.size() / total);
  batch.x0 = at::empty(
      {static_cast<int64_t>(batch.images.size()), dataset.channels(), dataset.side(), dataset.side()},
      at::kFloat);
  float* out = batch.x0.data_ptr<float>();
  for (const int64_t image : batch.images) {
    dataset.read_values(image, {.seed = seed}, out);
    out += batch.x0.stride(0);
    batch.labels.push_back(dataset.label(image));
  }
  return batch;
}

// Sums over images and seeds.
struct Sums {
  std::vector<double> mse, vb;  // one a seed
  double heads = 0, groups = 0, tokens = 0, required = 0, executed = 0;
  double rows = 0;

  void add(const Sums& other) {
    for (size_t s = 0; s < mse.size(); ++s) {
      mse[s] += other.mse[s];
      vb[s] += other.vb[s];
    }
    heads += other.heads;
    groups += other.groups;
    tokens += other.tokens;
    required += other.required;
    executed += other.executed;
    rows += other.rows;
  }
};

DecileLoss mean_of(const Sums& sums, const DiTConfig& config) {
  const double per_seed = sums.rows / static_cast<double>(sums.mse.size());
  const double complete = sums.rows * static_cast<double>(static_macs(config));
  DecileLoss mean{.mse = sums.mse,
                  .vb = sums.vb,
                  .heads = sums.heads / sums.rows,
                  .groups = sums.groups / sums.rows,
                  .tokens = sums.tokens / sums.rows,
                  .required_share = sums.required / complete,
                  .executed_share = sums.executed / complete};
  for (auto* loss : {&mean.mse, &mean.vb}) {
    for (double& value : *loss) value /= per_seed;
  }
  return mean;
}

// Adds the forward of `batch` at a step with the noise of seed number s.
void add_forward(Sums& sums, const Engine& engine, Workspace& workspace, const StepPlan& step,
                 int thousandths, const EvalBatch& batch, uint64_t seed, size_t s) {
  const Objective& objective = engine.config().objective;
  const int64_t count = batch.x0.size(0);
  at::Tensor noise = at::empty_like(batch.x0);
  const auto pixels = static_cast<size_t>(noise.stride(0));
  for (int64_t b = 0; b < count; ++b)
    fill_normal({noise.data_ptr<float>() + b * pixels, pixels}, seed, batch.images[b], thousandths);
  const at::Tensor ts = at::full({count}, step.timestep, objective.continuous() ? at::kDouble : at::kLong),
                   x_t = q_sample(batch.x0, ts, noise, objective);
  std::vector<Work> work(count);
  std::vector<Row> described;
  for (const int64_t label : batch.labels)
    described.push_back({&step, engine.config().num_classes > 0 ? label : 0});
  TokenTrace trace;
  ForwardOutputs outputs{{}, work, &trace};
  engine.forward(x_t, described, workspace, outputs);
  const DiffusionLoss loss = diffusion_loss(outputs.out, batch.x0, x_t, ts, noise, objective);
  const auto rows = static_cast<double>(count),
             parts = static_cast<double>(engine.config().num_heads * engine.config().depth);
  sums.mse[s] += loss.mse.sum().item<double>();
  sums.vb[s] += loss.vb.sum().item<double>();
  for (const BlockWidth& block : step.blocks) {
    sums.heads += rows * block.active_heads() / parts;
    sums.groups += rows * block.active_groups() / parts;
  }
  sums.tokens +=
      trace.masks.defined()
          ? rows * trace.masks.slice(2, 0, engine.config().num_tokens(step.level)).mean().item<double>()
          : rows;
  for (const Work& w : work) {
    sums.required += static_cast<double>(w.required);
    sums.executed += static_cast<double>(w.executed);
  }
  sums.rows += rows;
}

}  // namespace

LossReport evaluate_loss(const Checkpoint& checkpoint, const Dataset& dataset, const LossOptions& options,
                         const ProgressFn& on_progress, const CancelFlag* cancel) {
  check_data(dataset, checkpoint.config, options);
  DYDIT_USAGE_CHECK(options.level >= 0 && options.level < checkpoint.config.levels(),
                    "level {}: the model has levels 0 to {}", options.level, checkpoint.config.levels() - 1);
  c10::InferenceMode guard;
  const int64_t total = std::min(options.num_images, dataset.size());
  check_run_memory(checkpoint, options, total);
  const std::vector<double> none(options.seeds.size());
  std::array<Sums, kDeciles> sums;
  sums.fill({.mse = none, .vb = none});
  int64_t done = 0;
  const auto engine = make_engine(options.engine, checkpoint, options.engine_options());
  const auto workspace = engine->make_workspace({.threads = options.threads});
  for (int group = 0; group < std::min<int64_t>(kGroups, total); ++group) {  // others have no image
    const std::vector<double> timesteps = timesteps_of(checkpoint.config.objective, group);
    const RunPlan plan = make_width_plan(checkpoint, timesteps, options.mode);
    const std::vector<StepPlan>& steps = options.level > 0 ? plan.larger[options.level - 1] : plan.steps;
    checkpoint.check_unchanged();
    std::vector<Visit> visits;
    for (const StepPlan& step : steps) visits.insert(visits.begin(), {step.timestep, step.level});
    workspace->prepare(visits);
    for (int64_t first = group; first < total; first += int64_t{kGroups} * options.batch) {
      const EvalBatch batch = read_batch(dataset, options.seeds[0], total, first, options.batch);
      for (size_t s = 0; s < options.seeds.size(); ++s) {
        for (int d = kDeciles - 1; d >= 0; --d) {
          if (cancel && *cancel) throw Cancelled();
          add_forward(sums[d], *engine, *workspace, steps[d], thousandths_of(group, d), batch,
                      options.seeds[s], s);
        }
      }
      done += batch.x0.size(0);
      if (on_progress) on_progress({"images", done, total});
    }
  }
  LossReport report;
  Sums all{.mse = none, .vb = none};
  for (int d = 0; d < kDeciles; ++d) {
    report[d] = mean_of(sums[d], checkpoint.config);
    all.add(sums[d]);
  }
  report[kDeciles] = mean_of(all, checkpoint.config);
  return report;
}

}  // namespace dydit
