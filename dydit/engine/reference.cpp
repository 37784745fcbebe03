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
  ReferenceEngine(const Checkpoint& checkpoint, const WidthPlan& plan, const EngineOptions& options)
      : Engine(checkpoint, plan, options),
        model_(make_model(checkpoint, options.dtype)),
        pool_(options.threads) {}

  std::string_view name() const override { return kEngineNames[EngineKind::Reference]; }

 private:
  at::Tensor compute(const at::Tensor& x, int step, std::span<const int64_t> y, std::span<Work> work,
                     TokenTrace* trace) override {
    const DiTConfig& config = plan_.config;
    const int B = static_cast<int>(x.size(0));
    const at::Tensor out =
        at::empty({B, config.out_channels(), config.input_size, config.input_size}, at::kFloat);
    if (trace && plan_.route_tokens) {
      trace->masks = at::empty({B, config.depth, config.num_tokens()}, at::kFloat);
      trace->logits = at::empty_like(trace->masks);
    }
    pool_.run(B, [&](int row) {
      c10::InferenceMode guard;
      std::vector<int> tokens;
      out.select(0, row).copy_(forward_row(x.slice(0, row, row + 1), step, y[row], row, tokens, trace)[0]);
      work[row].required += required_macs(plan_, step, tokens);
      work[row].executed += static_macs(config) + (plan_.mode == Mode::Dynamic ? router_macs(config) : 0);
    });
    return out;
  }

  // `tokens` receives how many tokens entered each block's MLP; stays empty when all do.
  at::Tensor forward_row(const at::Tensor& x, int step, int64_t y, int row, std::vector<int>& tokens,
                         TokenTrace* trace) {
    const StepPlan& widths = plan_.steps[step];
    Gates gates;
    if (plan_.mode == Mode::Dynamic && plan_.config.width_routers) {
      for (const BlockWidth& width : widths.blocks) {
        gates.heads.push_back(mask_tensor(width.heads));
        gates.groups.push_back(mask_tensor(width.groups));
      }
    }
    if (plan_.route_tokens) {
      gates.tokens = [&](int block, const at::Tensor& logits) {
        const at::Tensor row_logits = logits.contiguous();
        const std::vector<uint8_t> on =
            select_tokens({row_logits.data_ptr<float>(), static_cast<size_t>(row_logits.numel())},
                          widths.blocks[block].keep_tokens);
        const at::Tensor mask = mask_tensor(on);
        tokens.push_back(static_cast<int>(std::count(on.begin(), on.end(), 1)));
        if (trace) {
          trace->masks[row][block].copy_(mask[0]);
          trace->logits[row][block].copy_(logits[0]);
        }
        return mask;
      };
    }
    const at::Tensor t_emb = model_->embed_timestep(at::tensor({static_cast<int64_t>(widths.timestep)}));
    return model_->forward(x, t_emb, at::tensor({y}), gates);
  }

  DiT model_;
  RowPool pool_;
};

}  // namespace

std::unique_ptr<Engine> make_reference_engine(const Checkpoint& checkpoint, const WidthPlan& plan,
                                              const EngineOptions& options) {
  return std::make_unique<ReferenceEngine>(checkpoint, plan, options);
}

}  // namespace dydit
