// A recorded training step: loss terms, work ratio, and the gradient of every parameter.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/diffusion/losses.h"
#include "dydit/model/dit.h"
#include "dydit/train/gates.h"
#include "verify.h"

namespace dydit {
namespace {

// ||a - b|| / max(||b||, 1e-6 ||all||)
void compare_gradients(DiT& model, const Reference& reference, VerifyReport& report) {
  double all = 0;
  for (const auto& parameter : model->named_parameters()) {
    if (parameter.value().requires_grad()) {
      all += std::pow(reference.at("grad." + parameter.key()).norm().item<double>(), 2);
    }
  }
  for (const auto& parameter : model->named_parameters()) {
    if (!parameter.value().requires_grad()) continue;
    const at::Tensor &got = parameter.value().grad(), want = reference.at("grad." + parameter.key());
    DYDIT_CHECK(got.defined() && got.sizes() == want.sizes(), "{}: grad.{} does not fit the model",
                reference.path(), parameter.key());
    const double scale = std::max(want.norm().item<double>(), 1e-6 * std::sqrt(all));
    report.error("grad." + parameter.key(), (got - want).norm().item<double>() / scale, kTrainingTolerance);
  }
}

}  // namespace

GateNoise recorded_noise(const Reference& reference, const DiTConfig& config, const std::string& prefix) {
  GateNoise noise;
  for (int l = 0; l < config.depth; ++l) {
    if (config.width_routers) {
      noise.heads.push_back(reference.at(fmt::format("{}gumbel.{}.attn", prefix, l)));
      noise.groups.push_back(reference.at(fmt::format("{}gumbel.{}.mlp", prefix, l)));
    }
    if (config.token_routers)
      noise.tokens.push_back(reference.at(fmt::format("{}gumbel.{}.token", prefix, l)).flatten(1));
  }
  return noise;
}

void verify_training(const VerifyContext& context, VerifyReport& report) {
  DYDIT_USAGE_CHECK(context.dtype == at::kFloat,
                    "--dtype bf16: a training step is compared in float32 only; use --dtype f32");
  const Reference& reference = context.reference;
  const at::Tensor x0 = checked_input(context, "x0"), noise = checked_input(context, "noise");
  checked_timesteps(reference, "t");
  const at::Tensor t = reference.at("t").to(at::kLong), y = reference.at("y").to(at::kLong);
  checked_labels(context, "y", x0.size(0));
  DiT model = make_model(context.checkpoint);
  model->train();
  const at::Tensor x_t = q_sample(x0, t, noise), t_emb = model->embed_timestep(t);

  TrainingGates gates(model, t_emb, recorded_noise(reference, context.checkpoint.config), GateKind::Hard);
  const DiffusionLoss dynamic =
      diffusion_loss(model->forward(x_t, t_emb, y, gates.gates()), x0, x_t, t, noise);
  const DiffusionLoss complete = diffusion_loss(model->forward(x_t, t_emb, y), x0, x_t, t, noise);
  const at::Tensor ratio = gates.ratio().mean();
  const at::Tensor flops = flops_loss(ratio, reference.at("target").item<double>());
  const at::Tensor total = (dynamic.mse + dynamic.vb).mean() + (complete.mse + complete.vb).mean() + flops;
  total.backward();

  report.compare("mse", dynamic.mse, reference.at("mse"), kTrainingTolerance);
  report.compare("vb", dynamic.vb, reference.at("vb"), kTrainingTolerance);
  report.compare("complete_mse", complete.mse, reference.at("complete_mse"), kTrainingTolerance);
  report.compare("complete_vb", complete.vb, reference.at("complete_vb"), kTrainingTolerance);
  report.compare("flops_ratio", ratio.view({1}), reference.at("flops_ratio"), kTrainingTolerance);
  report.compare("flops_loss", flops.view({1}), reference.at("flops_loss"), kTrainingTolerance);
  report.compare("total", total.view({1}), reference.at("total"), kTrainingTolerance);
  compare_gradients(model, reference, report);
}

}  // namespace dydit
