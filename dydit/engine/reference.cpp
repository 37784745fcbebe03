// The reference engine: the modules of model/dit.h with hard masks, one row at a time on one thread each.
#include <algorithm>

#include <torch/torch.h>

#include "dydit/base/row_pool.h"
#include "dydit/engine/engine.h"
#include "dydit/model/dit.h"
#include "dydit/model/macs.h"

namespace dydit {
namespace {

at::Tensor mask_tensor(const std::vector<uint8_t>& parts) {
  const at::Tensor mask = at::empty({1, static_cast<int64_t>(parts.size())}, at::kFloat);
  std::copy(parts.begin(), parts.end(), mask.data_ptr<float>());
  return mask;
}

// What lies in a slot, (1, T, C) of a row of T tokens.
at::Tensor kept(const History& history, int slot, int64_t tokens) {
  return history.features.slice(0, slot, slot + 1).slice(1, 0, tokens);
}

at::Tensor forecast(const std::vector<Term>& terms, const History& history, int64_t tokens) {
  at::Tensor value;  // (1, T, C) float32
  for (const Term& term : terms) {
    const at::Tensor part = kept(history, term.slot, tokens).to(at::kFloat).mul(term.weight);
    value = value.defined() ? value.add_(part) : part;
  }
  return value;
}

// Makes a row's forward keep and forecast what its plan says.
void obey(const Row& row, int64_t tokens, Gates& gates) {
  const StepPlan& step = *row.step;
  if (step.branches.empty() && step.ranges.empty()) return;
  gates.branch = [&row, &step, tokens](int block, Branch which, const std::function<at::Tensor()>& compute) {
    const BranchPlan& branch = step.branch(block, which);
    if (branch.action != kCompute) return forecast(branch.terms, *row.history, tokens);
    const at::Tensor value = compute();
    if (branch.store >= 0) kept(*row.history, branch.store, tokens).copy_(value);
    return value;
  };
  gates.enter = [&row, &step, tokens, before = std::vector<at::Tensor>(step.ranges.size())](
                    int block, at::Tensor& stream) mutable {
    for (size_t r = 0; r < step.ranges.size(); ++r) {
      const RangePlan& range = step.ranges[r];
      if (range.skipped()) continue;
      if (range.to == block)
        kept(*row.history, range.store, tokens).copy_(range.absolute ? stream : stream - before[r]);
      if (range.from == block) before[r] = stream;
    }
    const RangePlan* const range = step.skipped_from(block);
    if (range == nullptr) return block;
    const at::Tensor value = forecast(range->terms, *row.history, tokens);
    stream = range->absolute ? value : stream + value;
    return range->to;
  };
}

class ReferenceEngine final : public Engine {
 public:
  ReferenceEngine(const Checkpoint& checkpoint, const EngineOptions& options)
      : Engine(EngineKind::Reference, checkpoint.config, options),
        model_(make_model(checkpoint, options.dtype)) {}

 private:
  // LibTorch's operators run on threads of their own kind.
  struct Rows final : Workspace {
    Rows(const ReferenceEngine& engine, int threads) : Workspace(threads), engine(engine), pool(threads) {}
    const ReferenceEngine& engine;
    RowPool pool;
  };

  std::unique_ptr<Workspace> new_workspace(const WorkspaceOptions& options) const override {
    return std::make_unique<Rows>(*this, options.threads);
  }
  bool owns(const Workspace& workspace) const override {
    const auto* rows = dynamic_cast<const Rows*>(&workspace);
    return rows != nullptr && &rows->engine == this;
  }

  void compute(const at::Tensor& x, std::span<const Row> rows, Workspace& workspace,
               const ForwardOutputs& outputs) const override {
    static_cast<Rows&>(workspace).pool.run(static_cast<int>(rows.size()), [&](int b) {
      c10::InferenceMode guard;
      std::vector<int> tokens;
      const StepPlan& step = *rows[b].step;
      outputs.out.select(0, b).copy_(forward_row(x.slice(0, b, b + 1), rows[b], b, tokens, outputs.trace)[0]);
      outputs.work[b].required += required_macs(config_, step, tokens);
      outputs.work[b].executed += executed_macs(step);
    });
  }

  // The complete model but for branches that are not computed.
  int64_t executed_macs(const StepPlan& step) const {
    const int L = config_.depth, H = config_.num_heads;
    const bool dynamic = step.mode == Mode::Dynamic;
    const int64_t width_router = dynamic ? width_router_macs(config_) : 0;
    int64_t macs = fixed_macs(config_, step.level);
    for (int l = 0; l < L; ++l) {
      const int64_t N = config_.num_tokens(step.level);
      if (step.computes(l, Branch::Attention))
        macs += attention_macs(config_, H, step.level) + adapter_attention_macs(config_, H, N) + width_router;
      if (step.computes(l, Branch::Mlp)) {
        macs += mlp_macs(config_, H, N) + adapter_mlp_macs(config_, H, N) + width_router;
      }
      if (step.routes_at(config_, l)) macs += token_router_macs(config_, step.level);
      const bool skipped = step.branch(l, Branch::Mlp).action == kSkipped;
      if (!skipped) macs += adapter_router_macs(config_);
      macs += skipped ? -2 * adaLN_macs(config_) : join_macs(config_, l);
    }
    return macs;
  }

  // `tokens` receives how many tokens entered each block's MLP; stays empty when all do.
  at::Tensor forward_row(const at::Tensor& x, const Row& row, int b, std::vector<int>& tokens,
                         TokenTrace* trace) const {
    const StepPlan& step = *row.step;
    Gates gates;
    if (step.mode == Mode::Dynamic && config_.width_routers) {
      for (const BlockWidth& width : step.blocks) {
        gates.heads.push_back(mask_tensor(width.heads));
        gates.groups.push_back(mask_tensor(width.groups));
      }
    }
    if (step.routes_tokens(config_)) {
      gates.tokens = [&](int block, const at::Tensor& logits) {
        const at::Tensor row_logits = logits.contiguous();
        const std::vector<uint8_t> on =
            select_tokens({row_logits.data_ptr<float>(), static_cast<size_t>(row_logits.numel())},
                          step.blocks[block].keep_tokens);
        const at::Tensor mask = mask_tensor(on);
        tokens.resize(config_.depth);  // 0 where the MLP is not computed
        tokens[block] = static_cast<int>(std::count(on.begin(), on.end(), 1));
        if (trace) {
          trace->masks[b][block].slice(0, 0, mask.size(1)).copy_(mask[0]);
          trace->logits[b][block].slice(0, 0, mask.size(1)).copy_(logits[0]);
        }
        return mask;
      };
    }
    obey(row, config_.sequence(step.level), gates);
    DiT model = model_;  // a handle: the modules are shared
    const at::Tensor t_emb = model->embed_timestep(at::tensor({step.timestep}, at::kDouble), step.level);
    return model->forward(x, t_emb, at::tensor({row.label}), gates, step.level);
  }

  const DiT model_;
};

}  // namespace

std::unique_ptr<Engine> make_reference_engine(const Checkpoint& checkpoint, const EngineOptions& options) {
  return std::make_unique<ReferenceEngine>(checkpoint, options);
}

}  // namespace dydit
