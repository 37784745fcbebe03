// The one door of all engines: what comes in is looked at here.
#include "dydit/engine/engine.h"

#include <algorithm>

#include <ATen/ops/empty.h>
#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/engine/cpu/workspace.h"
#include "dydit/model/quantization.h"

namespace dydit {
namespace {

std::string description(const at::Tensor& x) {
  if (!x.defined()) return "no tensor";
  return fmt::format("({}) in {} on {}", fmt::join(x.sizes(), ", "), c10::toString(x.scalar_type()),
                     x.device().str());
}

// A plan may be of another model, or made by hand.
void check_step(const StepPlan* step, const DiTConfig& config) {
  DYDIT_USAGE_CHECK(step != nullptr, "a row without a step");
  DYDIT_USAGE_CHECK(is_time(config.objective, step->timestep), "timestep {}: expected 0 to {}",
                    step->timestep, last_time(config.objective));
  const auto is_mask = [&](const std::vector<uint8_t>& parts) {  // the first is always on
    return parts.size() == static_cast<size_t>(config.num_heads) && parts[0] == 1 &&
           std::all_of(parts.begin(), parts.end(), [](uint8_t part) { return part <= 1; });
  };
  const auto fits = [&](const BlockWidth& block) {
    return is_mask(block.heads) && is_mask(block.groups) &&
           block.keep_tokens <= config.num_tokens(step->level);
  };
  DYDIT_USAGE_CHECK(step->level >= 0 && step->level < config.levels(), "level {}: {} has {} of them",
                    step->level, model_name(config), config.levels());
  DYDIT_USAGE_CHECK((step->mode == Mode::Static || config.is_dynamic()) &&
                        step->blocks.size() == static_cast<size_t>(config.depth) &&
                        std::all_of(step->blocks.begin(), step->blocks.end(), fits),
                    "the plan of timestep {} does not fit {}", step->timestep, model_name(config));
}

// What a step keeps and forecasts fits the model and the row's history, in whose slots it finds what it reads
// and keeps one feature each.
void check_history(const Row& row, const DiTConfig& config, at::ScalarType dtype, at::Device device) {
  const StepPlan& step = *row.step;
  if (step.branches.empty() && step.ranges.empty()) return;
  const int L = config.depth;
  const History* const history = row.history;
  const std::vector<int64_t> shape = {step.slots, config.sequence(), config.hidden_size};
  DYDIT_USAGE_CHECK(history != nullptr && history->kept_at.size() == static_cast<size_t>(step.slots) &&
                        history->features.defined() && history->features.device() == device &&
                        history->features.sizes() == shape && history->features.scalar_type() == dtype &&
                        history->features.is_contiguous(),
                    "the plan of timestep {} keeps {} features in {}: the row's history does not fit",
                    step.timestep, step.slots, c10::toString(dtype));
  std::vector<uint8_t> stored(step.slots);
  const auto fits = [&](int store, const std::vector<Term>& terms) {
    return store >= -1 && store < step.slots && terms.size() <= kMaxOrder + 1 &&
           (store < 0 || stored[store]++ == 0);
  };
  const auto check_terms = [&](const std::vector<Term>& terms) {
    for (const Term& term : terms) {
      DYDIT_USAGE_CHECK(
          term.slot >= 0 && term.slot < step.slots && history->kept_at[term.slot] == term.step,
          "step {} of a plan forecasts from step {}, which this history does not hold: its steps "
          "are taken in order, all by one history",
          step.index, term.step);
      DYDIT_USAGE_CHECK(!stored[term.slot],
                        "step {} of a plan forecasts from slot {} and keeps another feature in it",
                        step.index, term.slot);
    }
  };
  bool good = step.branches.size() == static_cast<size_t>(2 * L);
  std::vector<uint8_t> skipped(L);
  for (const RangePlan& range : step.ranges) {
    for (int l = range.to; range.skipped() && l < L; ++l)  // what it skips nobody may look for
      good = good && (config.join_source(l) < range.from || config.join_source(l) >= range.to ||
                      step.branch(l, Branch::Attention).action == kSkipped);
    good = good && range.from >= 0 && range.from < range.to && range.to <= L &&
           fits(range.store, range.terms) && range.skipped() == (range.store < 0);
    for (int l = range.from; good && range.skipped() && l < range.to; ++l) good = skipped[l]++ == 0;
  }
  for (int b = 0; good && b < 2 * L; ++b) {
    const BranchPlan& branch = step.branches[b];
    const bool forecast = branch.action >= 0 && branch.action <= kMaxOrder;
    good = fits(branch.store, branch.terms) && (branch.action == kSkipped) == (skipped[b / 2] > 0) &&
           forecast == !branch.terms.empty() && (branch.action == kCompute || branch.store < 0) &&
           (forecast || branch.action == kCompute || branch.action == kSkipped);
  }
  DYDIT_USAGE_CHECK(good, "the plan of timestep {} does not fit {}", step.timestep, model_name(config));
  for (const BranchPlan& branch : step.branches) check_terms(branch.terms);
  for (const RangePlan& range : step.ranges) check_terms(range.terms);
}

// What the forward of a row has put into its history.
void note_kept(const Row& row) {
  const auto kept = [&](int store) {
    if (store >= 0) row.history->kept_at[store] = row.step->index;
  };
  for (const BranchPlan& branch : row.step->branches) kept(branch.store);
  for (const RangePlan& range : row.step->ranges) kept(range.store);
}

// Tensors for the decisions of these rows, those that are there where they fit; none where no row routes.
void make_trace(std::span<const Row> rows, const DiTConfig& config, TokenTrace& trace) {
  const auto routes = [&](const Row& row) { return row.step->routes_tokens(config); };
  const std::vector<int64_t> shape = {static_cast<int64_t>(rows.size()), config.depth, config.num_tokens()};
  if (std::none_of(rows.begin(), rows.end(), routes)) {
    trace = {};
  } else if (!trace.masks.defined() || trace.masks.sizes() != shape) {
    trace = {at::empty(shape, at::kFloat), at::empty(shape, at::kFloat)};
  }
  for (int64_t b = 0; trace.masks.defined() && b < shape[0]; ++b) {
    const StepPlan& step = *rows[b].step;
    for (int l = 0; l < config.depth; ++l) {
      const bool computes = step.computes(l, Branch::Mlp);
      if (step.routes_at(config, l) && step.level == 0) continue;
      trace.masks[b][l].zero_();  // beyond the tokens of the level, too
      trace.masks[b][l].slice(0, 0, config.num_tokens(step.level)).fill_(computes);
      trace.logits[b][l].zero_();
    }
  }
}

}  // namespace

at::ScalarType auto_dtype(const Checkpoint& checkpoint, EngineKind kind, at::DeviceType device) {
  const bool int8 = checkpoint.quantization && kind == EngineKind::Cpu && has_vnni(active_isa());
  return int8 ? at::kChar : auto_dtype(device);
}

at::ScalarType kept_type(EngineKind kind, const EngineOptions& options) {
  return kind == EngineKind::Cpu ? options.level.value_or(level_of(options.dtype)).activations
                                 : options.dtype;
}

std::string arithmetic_text(EngineKind kind, at::ScalarType dtype) {
  const std::string name(kModelDtypeNames[dtype]);
  const Level level = level_of(dtype);
  return kind != EngineKind::Cpu || level.activations == dtype ? name
                                                               : fmt::format("{} ({})", name, level.name);
}

Engine::Engine(EngineKind kind, const DiTConfig& config, const EngineOptions& options)
    : config_(config), kept_type_(kept_type(kind, options)), device_(options.where.device) {
  DYDIT_USAGE_CHECK(
      options.dtype == at::kFloat || options.dtype == at::kBFloat16 || options.dtype == at::kChar,
      "dtype {}: expected float32, bfloat16 or int8", c10::toString(options.dtype));
  DYDIT_USAGE_CHECK(options.dtype != at::kChar || kind == EngineKind::Cpu,
                    "dtype int8: the {} engine has no 8-bit arithmetic; take the cpu engine",
                    kEngineNames[kind]);
  DYDIT_USAGE_CHECK(device_.is_cpu() || kind == EngineKind::Torch,
                    "device {}: the {} engine computes on the CPU; take the torch engine", device_.str(),
                    kEngineNames[kind]);
  DYDIT_USAGE_CHECK(options.where.batch_invariant || device_.is_cuda(),
                    "batch_invariant false: a choice of GPUs alone");
  DYDIT_USAGE_CHECK(options.where.graphs == GraphMode::Auto || device_.is_cuda(), "graphs: the CPU has none");
  DYDIT_USAGE_CHECK(options.dtype != at::kChar || has_vnni(active_isa()),
                    "dtype int8: this processor ({}) has no dot products of bytes (VNNI); take f32 or bf16",
                    isa_name(active_isa()));
  DYDIT_USAGE_CHECK(options.threads >= 1, "{} threads: expected 1 or more", options.threads);
  DYDIT_USAGE_CHECK(!options.level || options.level->weights == options.dtype,
                    "level {}: its weights are not {}", options.level->name, c10::toString(options.dtype));
}

std::unique_ptr<Workspace> Engine::make_workspace(const WorkspaceOptions& options) const {
  DYDIT_USAGE_CHECK(options.threads >= 1, "{} threads: expected 1 or more", options.threads);
  DYDIT_USAGE_CHECK(
      options.profile == nullptr || static_cast<int>(options.profile->size()) == config_.depth + 1,
      "a profile of {} rows: expected {}, one a block and one more", options.profile->size(),
      config_.depth + 1);
  const size_t inputs = size_t{2} * config_.depth * config_.hidden_size;
  DYDIT_USAGE_CHECK(
      options.largest_inputs.empty() || (options.largest_inputs.size() == inputs && kept_type_ == at::kFloat),
      "{} largest inputs of {} activations: expected {} of Float", options.largest_inputs.size(),
      c10::toString(kept_type_), inputs);
  return new_workspace(options);
}

History Engine::make_history(int slots) const {
  return {at::empty({slots, config_.sequence(), config_.hidden_size},
                    at::TensorOptions().dtype(kept_type_).device(device_)),
          std::vector<int>(slots, -1)};
}

int64_t history_bytes(const DiTConfig& config, at::ScalarType kept, int slots) {
  return int64_t{slots} * config.sequence() * config.hidden_size * (kept == at::kFloat ? 4 : 2);
}

void Engine::forward(const at::Tensor& x, std::span<const Row> rows, Workspace& workspace,
                     ForwardOutputs& outputs) const {
  const int side = config_.input_size;
  DYDIT_USAGE_CHECK(x.defined() && x.device().is_cpu() && x.scalar_type() == at::kFloat && x.dim() == 4 &&
                        x.size(1) == config_.in_channels && x.size(2) == side && x.size(3) == side,
                    "x: expected (rows, {}, {}, {}) in float32 on the CPU, got {}", config_.in_channels, side,
                    side, description(x));
  const auto B = static_cast<size_t>(x.size(0));
  DYDIT_USAGE_CHECK(rows.size() == B, "{} rows are described, x has {}", rows.size(), B);
  DYDIT_USAGE_CHECK(outputs.work.size() == B, "work for {} rows, x has {}", outputs.work.size(), B);
  DYDIT_USAGE_CHECK(owns(workspace), "the workspace is of another engine");
  const StepPlan* checked = nullptr;
  std::vector<const History*> histories;
  for (const Row& row : rows) {
    DYDIT_USAGE_CHECK(row.label >= 0 && row.label <= config_.last_label(), "label {}: expected 0 to {}",
                      row.label, config_.last_label());
    if (row.step != checked || checked == nullptr) check_step(row.step, config_);
    checked = row.step;
    check_history(row, config_, kept_type_, device_);
    if (row.history != nullptr) histories.push_back(row.history);
  }
  std::sort(histories.begin(), histories.end());
  DYDIT_USAGE_CHECK(std::adjacent_find(histories.begin(), histories.end()) == histories.end(),
                    "two rows of a forward have one history");
  const std::vector<int64_t> shape = {x.size(0), config_.out_channels(), side, side};
  if (!outputs.out.defined()) outputs.out = at::empty(shape, at::kFloat);
  DYDIT_USAGE_CHECK(outputs.out.sizes() == shape && outputs.out.scalar_type() == at::kFloat &&
                        outputs.out.device().is_cpu() && outputs.out.is_contiguous(),
                    "out: expected ({}), contiguous in float32 on the CPU, got {}", fmt::join(shape, ", "),
                    description(outputs.out));
  if (B == 0) return;
  ForwardOutputs wanted = outputs;
  if (outputs.trace != nullptr) make_trace(rows, config_, *outputs.trace);
  if (outputs.trace != nullptr && !outputs.trace->masks.defined()) wanted.trace = nullptr;
  compute(x.contiguous(), rows, workspace, wanted);
  std::for_each(rows.begin(), rows.end(), note_kept);
}

std::unique_ptr<Engine> make_engine(EngineKind kind, const Checkpoint& checkpoint,
                                    const EngineOptions& options) {
  switch (kind) {
    case EngineKind::Cpu:
      return make_cpu_engine(checkpoint, options);
    case EngineKind::Torch:
      return make_torch_engine(checkpoint, options);
    default:
      return make_reference_engine(checkpoint, options);
  }
}

double least_engine_bytes(EngineKind kind, const Checkpoint& checkpoint, const EngineOptions& options,
                          int64_t rows, int ranges) {
  const DiTConfig& config = checkpoint.config;
  if (options.where.device.is_cuda()) return 0;  // of the GPU's memory: make_torch_engine asks
  const bool bf16 = options.dtype == at::kBFloat16;
  double bytes = 0;
  for (const auto& [name, weight] : checkpoint.weights) {
    const bool narrow =
        (bf16 && is_block_layer(name)) || (kind == EngineKind::Cpu && weight.scalar_type() == at::kBFloat16);
    const bool int8 = options.dtype == at::kChar && is_block_layer(name);
    bytes += static_cast<double>(weight.numel()) * (int8 ? 1 : narrow ? 2 : 4);
  }
  const double side = config.input_size,
               outputs = static_cast<double>(rows) * config.out_channels() * side * side;
  bytes += outputs * sizeof(float);
  if (kind == EngineKind::Cpu)
    return bytes + cpu::workspace_bytes(config, kept_type(kind, options) == at::kBFloat16, rows,
                                        options.threads, ranges);
  // The stream and the MLP's hidden rows, of as many rows as are in work at a time.
  const double tokens = static_cast<double>(std::min<int64_t>(rows, options.threads)) * config.sequence();
  return bytes + tokens * (config.hidden_size * 4.0 + config.mlp_hidden * (bf16 ? 2.0 : 4.0));
}

}  // namespace dydit
