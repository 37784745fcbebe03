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

class ReferenceEngine final : public Engine {
 public:
  ReferenceEngine(const Checkpoint& checkpoint, const EngineOptions& options)
      : Engine(checkpoint.config, options), model_(make_model(checkpoint, options.dtype)) {}

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
      outputs.work[b].executed +=
          static_macs(config_) + (step.mode == Mode::Dynamic ? router_macs(config_) : 0);
    });
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
        tokens.push_back(static_cast<int>(std::count(on.begin(), on.end(), 1)));
        if (trace) {
          trace->masks[b][block].copy_(mask[0]);
          trace->logits[b][block].copy_(logits[0]);
        }
        return mask;
      };
    }
    DiT model = model_;  // a handle: the modules are shared
    const at::Tensor t_emb = model->embed_timestep(at::tensor({static_cast<int64_t>(step.timestep)}));
    return model->forward(x, t_emb, at::tensor({row.label}), gates);
  }

  const DiT model_;
};

}  // namespace

std::unique_ptr<Engine> make_reference_engine(const Checkpoint& checkpoint, const EngineOptions& options) {
  return std::make_unique<ReferenceEngine>(checkpoint, options);
}

}  // namespace dydit
