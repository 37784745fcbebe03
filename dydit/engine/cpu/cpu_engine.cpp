// A batch of rows, divided into passes of equal plans (workspace.h) over the threads.
#include "dydit/engine/cpu/cpu_engine.h"

#include <ATen/ATen.h>

#include "dydit/base/error.h"
#include "dydit/model/adapters.h"
#include "dydit/model/edit.h"
#include "dydit/model/macs.h"

namespace dydit {
namespace cpu {

CpuEngine::CpuEngine(const Checkpoint& checkpoint, const EngineOptions& options)
    : Engine(EngineKind::Cpu, checkpoint.config, options),
      bf16_(kept_type_ == at::kBFloat16),
      kernels_(kernels()),
      int8_(options.dtype == at::kChar ? int8_kernels() : nullptr),
      N_(config_.num_tokens()),
      X_(config_.extras()),
      T_(config_.sequence()),
      C_(config_.hidden_size),
      L_(config_.depth),
      H_(config_.num_heads),
      D_(config_.head_size()),
      row_(even(C_)),
      gelu_(config_.gelu == GeluForm::Erf ? Epilogue::GeluErf : Epilogue::Gelu),
      model_(checkpoint, options.level.value_or(level_of(options.dtype)), options.threads) {}

CpuWorkspace::CpuWorkspace(const CpuEngine& engine, const PackedModel& model, const WorkspaceOptions& options)
    : Workspace(options.threads),
      engine(engine),
      profile(options.profile),
      largest_inputs(options.largest_inputs),
      expanded_parts{expanded.floats(crew_.threads() * model.expanded_floats()), model.expanded_floats()},
      modulation(model, expanded_parts),
      shared(crew_.together(), expanded_parts, engine.config(), engine.bf16()) {
  for (int thread = 0; thread < crew_.threads(); ++thread)
    own.emplace_back(crew_.own(thread), expanded_parts, engine.config(), engine.bf16());
  scratch.reserve(crew_.threads() * engine.scratch_bytes());
  if (engine.int8()) unrounded.reserve(crew_.threads() * engine.unrounded_floats() * sizeof(float));
  if (model.config().token_routers) router.reserve(crew_.threads() * engine.router_floats() * sizeof(float));
  shared.largest.assign(largest_inputs.size(), 0.0f);
  for (PassMemory& w : own) w.largest = shared.largest;
  if (profile == nullptr) return;
  shared.profile.assign(profile->size(), {});
  for (PassMemory& w : own) w.profile = shared.profile;
}

std::unique_ptr<Workspace> CpuEngine::new_workspace(const WorkspaceOptions& options) const {
  DYDIT_USAGE_CHECK(options.largest_inputs.empty() || !int8(),
                    "largest inputs: 8-bit rows do not tell them; take float32");
  return std::make_unique<CpuWorkspace>(*this, model_, options);
}

// What was measured. Threads that work side by side took the mean of their times.
void read_measured(CpuWorkspace& run, PassMemory& w) {
  for (size_t i = 0; i < w.largest.size(); ++i)
    run.largest_inputs[i] = std::max(run.largest_inputs[i], w.largest[i]);
  const double share = 1.0 / (run.crew().threads() / w.team.threads());
  for (size_t row = 0; row < w.profile.size(); ++row) {
    for (size_t op = 0; op < w.profile[row].size(); ++op)
      (*run.profile)[row][op] += share * std::exchange(w.profile[row][op], 0.0);
  }
}

void CpuEngine::compute(const at::Tensor& x, std::span<const Row> rows, Workspace& workspace,
                        const ForwardOutputs& outputs) const {
  auto& run = static_cast<CpuWorkspace&>(workspace);
  const int B = static_cast<int>(rows.size());
  run.groups.assign(rows);
  const float* const* modulation = nullptr;
  timed(run.shared, L_, Operator::AdaLN, [&] {
    run.keys.clear();
    for (const Row& row : rows) run.keys.push_back({{row.step->timestep, row.step->level}, row.label});
    modulation = run.modulation.of(run.keys, run.shared.team).data();
  });
  const auto forward_rows = [&](const Piece& piece, PassMemory& w) {
    const std::span<const int> of_batch = run.groups.rows(piece);
    const StepPlan& plan = *rows[of_batch[0]].step;
    const Pass pass = {{of_batch, rows, modulation, run.modulation.times().data(), plan,
                        config_.num_tokens(plan.level), config_.sequence(plan.level)},
                       plan.routes_tokens(config_),
                       outputs.trace,
                       run,
                       w};
    forward_pass(pass, x.data_ptr<float>(), outputs.out.data_ptr<float>());
    for (int b = 0; b < piece.count; ++b) {
      const std::span<const int> kept(w.kept.data() + static_cast<size_t>(b) * L_, L_);
      Work& done = outputs.work[of_batch[b]];
      done.required += required_macs(config_, plan, kept);
      done.executed += model_.executed_macs(plan, kept);
    }
  };
  int ranges = 0, level = config_.levels() - 1;  // the level of the most tokens
  for (const Row& row : rows) {
    ranges = std::max(ranges, static_cast<int>(row.step->ranges.size()));
    level = std::min(level, row.step->level);
  }
  const Division division = divide(B, config_.sequence(level), run.crew().threads());
  if (division.alone > 0) {
    for (PassMemory& w : run.own) reserve(w, division.samples_alone(), ranges, level);
    const std::vector<Piece> pieces = run.groups.pieces_alone(division);
    run.crew().run_apart(static_cast<int>(pieces.size()),
                         [&](int task, int thread) { forward_rows(pieces[task], run.own[thread]); });
    for (PassMemory& w : run.own) read_measured(run, w);
  }
  if (division.together > 0) {
    reserve(run.shared, division.samples, ranges, level);
    for (const Piece& piece : run.groups.pieces_together(division)) forward_rows(piece, run.shared);
  }
  read_measured(run, run.shared);
}

// All memory of a pass with everything on, so that no later step needs more.
void CpuEngine::reserve(PassMemory& w, int samples, int ranges, int level) const {
  const PassBytes bytes = pass_bytes(config_, bf16_, samples, ranges, level);
  w.x.reserve(bytes.x);
  w.rows.reserve(bytes.rows);
  w.qkv.reserve(bytes.qkv);
  w.heads.reserve(bytes.heads);
  w.hidden.reserve(bytes.hidden);
  w.patches.reserve(bytes.patches);
  w.cache.reserve(bytes.before);
  w.joined.reserve(bytes.joined);
  w.outputs.reserve(bytes.outputs);
  w.patch_rows.clear();
  for (int row = 0; X_ > 0 && row < samples * N_; ++row)
    w.patch_rows.push_back(row / N_ * T_ + X_ + row % N_);
  if (int8()) {
    const size_t rows = static_cast<size_t>(samples) * config_.sequence(level);
    w.row_scales.reserve(rows * sizeof(float));
    w.part_scales.reserve(rows * H_ * sizeof(float));
  }
  if (!config_.token_routers) return;
  w.logits.reserve(bytes.logits);
  w.gathered.reserve(static_cast<size_t>(samples) * config_.sequence(level));
}

}  // namespace cpu

std::unique_ptr<Engine> make_cpu_engine(const Checkpoint& checkpoint, const EngineOptions& options) {
  const AdapterConfig& adapter = checkpoint.config.adapter;
  DYDIT_USAGE_CHECK(adapter.kind != AdapterKind::TdLora,
                    "{}: has {}, whose weights are others at every step; the cpu engine packs weights once: "
                    "take --engine reference",
                    checkpoint.path.string(), adapter_text(adapter));
  if (adapter.kind == AdapterKind::Lora)
    return std::make_unique<cpu::CpuEngine>(merge_adapters(checkpoint), options);
  return std::make_unique<cpu::CpuEngine>(checkpoint, options);
}

}  // namespace dydit
