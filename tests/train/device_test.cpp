// Nothing of a step stays behind on the CPU: forward, backward and update on the device "meta", which has
// shapes and no values, and like a GPU refuses operands that lie elsewhere.
#include <gtest/gtest.h>
#include <torch/library.h>
#include <torch/torch.h>

#include "dydit/diffusion/losses.h"
#include "dydit/model/edit.h"
#include "dydit/train/capacity.h"
#include "dydit/train/parameters.h"
#include "dydit/train/step.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

constexpr int kBatch = 4;

// Shapes of operators that LibTorch knows for "meta" in Python only.
using OptionalTensor = std::optional<at::Tensor>;
using ThreeTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

void check_meta(std::initializer_list<at::Tensor> tensors) {
  for (const at::Tensor& tensor : tensors) TORCH_CHECK(tensor.is_meta(), "an operand lies elsewhere");
}

at::Tensor index_select(const at::Tensor& table, int64_t dim, const at::Tensor& index) {
  check_meta({table, index});
  std::vector<int64_t> sizes = table.sizes().vec();
  sizes[dim] = index.numel();
  return at::empty(sizes, table.options());
}

at::Tensor embedding_backward(const at::Tensor& gradient, const at::Tensor& index, c10::SymInt rows,
                              c10::SymInt padding, bool by_frequency) {
  check_meta({gradient, index});
  return at::empty({rows.expect_int(), gradient.size(-1)}, gradient.options());
}

ThreeTensors layer_norm(const at::Tensor& x, c10::SymIntArrayRef shape, const OptionalTensor& weight,
                        const OptionalTensor& bias, double eps) {
  check_meta({x});
  const at::Tensor moments = at::empty({x.size(0), x.size(1), 1}, x.options());
  return {at::empty_like(x), moments, moments.clone()};
}

ThreeTensors layer_norm_backward(const at::Tensor& gradient, const at::Tensor& x, c10::SymIntArrayRef shape,
                                 const at::Tensor& mean, const at::Tensor& rstd, const OptionalTensor& weight,
                                 const OptionalTensor& bias, std::array<bool, 3> wanted) {
  check_meta({gradient, x, mean, rstd});
  return {at::empty_like(x), at::Tensor(), at::Tensor()};
}

TORCH_LIBRARY_IMPL(aten, Meta, library) {
  library.impl("relu", [](const at::Tensor& x) { return at::empty_like(x); });
  library.impl("where.self", [](const at::Tensor& which, const at::Tensor& a, const at::Tensor& b) {
    return (a + b) * which;
  });
  library.impl(
      "where.self_out",
      [](const at::Tensor& which, const at::Tensor& a, const at::Tensor& b, at::Tensor& out) -> at::Tensor& {
        check_meta({which, a, b, out});
        return out;
      });
  library.impl("index_select", index_select);
  library.impl("embedding_dense_backward", embedding_backward);
  library.impl("native_layer_norm", layer_norm);
  library.impl("native_layer_norm_backward", layer_norm_backward);
}

// Module::parameters_ is protected; naming it through a class of ours gives a pointer to it.
struct OpenModule : torch::nn::Module {
  static constexpr auto kParameters = &OpenModule::parameters_;
};

// DiT's to(device), which LibTorch has for every device but "meta".
void move_to_meta(DiT& model) {
  for (const auto& module : model->modules()) {
    for (auto& parameter : (*module).*OpenModule::kParameters) {
      const bool learns = parameter.value().requires_grad();
      parameter.value() = parameter.value().detach().to(at::kMeta).requires_grad_(learns);
    }
    if (auto* linear = module->as<LinearImpl>()) {
      linear->weight = linear->named_parameters()["weight"];
      linear->bias = linear->named_parameters()["bias"];
    }
  }
  auto parameters = model->named_parameters();
  model->pos_embed = parameters["pos_embed"];
  model->patch_weight = parameters["x_embedder.proj.weight"];
  model->patch_bias = parameters["x_embedder.proj.bias"];
  model->label_table = parameters["y_embedder.embedding_table.weight"];
}

TrainOptions finetune_options(GateRule rule, at::ScalarType dtype) {
  TrainOptions options;
  options.dynamic = true;
  options.router.gate_rule = rule;
  options.global_batch = kBatch;
  options.dtype = dtype;
  return options;
}

void run_step_elsewhere(const TrainOptions& options) {
  const DiTConfig config = test::tiny_config();
  DiT model = test::random_model(config);
  at::Tensor counts;
  if (options.router.gate_rule == GateRule::Capacity) {
    const at::Tensor share = at::full({3, config.depth, kQuarters}, 0.7f);
    model->register_parameter(kKeepShareName, share);
    counts = choose_counts(config, share, 0.5).to(at::kMeta);
  }
  model->compute_dtype = options.dtype;
  move_to_meta(model);
  ParameterStore store(model, /*router_lr_scale=*/2);
  ASSERT_TRUE(store.values.is_meta() && store.grads.is_meta() && store.ema.is_meta());

  const test::Inputs images = test::random_inputs(config, kBatch);
  const at::Tensor pixels = images.x.contiguous(), labels = images.labels().contiguous();
  Batch batch{.images = {pixels.data_ptr<float>(), pixels.data_ptr<float>() + pixels.numel()},
              .labels = {labels.data_ptr<int64_t>(), labels.data_ptr<int64_t>() + labels.numel()}};
  const StepInputs inputs = make_step_inputs(config, options, batch, 0, 0, kBatch).to(at::kMeta);
  const at::Tensor t_emb = model->embed_timestep(inputs.t);
  CapacityInputs capacity;
  if (counts.defined()) capacity = {keep_share(model), counts, at::div(inputs.t, 250, "floor")};
  TrainingGates gates(model, t_emb, inputs.gate_noise, options.router.gates, capacity);
  const at::Tensor output = model->forward(inputs.x_t, t_emb, inputs.y, gates.gates());
  const DiffusionLoss loss = diffusion_loss(output, inputs.x0, inputs.x_t, inputs.t, inputs.noise);
  EXPECT_TRUE(gates.inference_ratio().is_meta());
  EXPECT_TRUE(gates.kept().heads.is_meta());
  ((loss.mse + loss.vb).sum() + gates.ratio().sum()).backward();
  for (const auto& parameter : model->named_parameters()) {
    if (parameter.value().requires_grad()) {
      EXPECT_TRUE(parameter.value().grad().is_meta()) << parameter.key();
    }
  }
  store.grads.mul_(0.5);
  store.adamw_step({.lr = 1e-3, .weight_decay = 0.1}, 1);
  store.ema_step(0.9);
  EXPECT_TRUE(store.values.is_meta() && store.exp_avg.is_meta() && store.ema.is_meta());
}

TEST(Device, AStepByThresholdIsWhollyThere) {
  run_step_elsewhere(finetune_options(GateRule::Threshold, at::kFloat));
}

TEST(Device, AStepByCapacityIsWhollyThere) {
  run_step_elsewhere(finetune_options(GateRule::Capacity, at::kFloat));
}

TEST(Device, AStepInBFloat16IsWhollyThere) {
  run_step_elsewhere(finetune_options(GateRule::Threshold, at::kBFloat16));
}

}  // namespace
}  // namespace dydit
