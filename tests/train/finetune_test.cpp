// A golden run guards the whole step: ten steps of a tiny fine-tune, recorded from an independent PyTorch
// loop (tools/make_finetune_vectors.py), are replayed with its batches and noise.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <torch/torch.h>

#include "dydit/diffusion/losses.h"
#include "dydit/io/safetensors.h"
#include "dydit/model/dit.h"
#include "dydit/train/state.h"
#include "dydit/train/step.h"

namespace dydit {
namespace {

constexpr int kSteps = 10, kBatch = 8;
constexpr double kTolerance = 1e-4;

class Recording {
 public:
  Recording()
      : file_(read_safetensors(std::filesystem::path(DYDIT_TESTS_DIR) / "train/data/finetune.safetensors")) {}

  at::Tensor tensor(const std::string& name) const {
    return to_tensor(file_.tensors.at(name), file_.file).clone();
  }
  double value(const std::string& name, int step) const { return tensor(name)[step].item<double>(); }
  nlohmann::json json(const std::string& key) const { return nlohmann::json::parse(file_.metadata.at(key)); }

  /// The tensors whose names start with `prefix`, without it.
  Weights tensors(const std::string& prefix) const {
    Weights found;
    for (const auto& [name, view] : file_.tensors) {
      if (name.starts_with(prefix)) found[name.substr(prefix.size())] = tensor(name);
    }
    return found;
  }

 private:
  SafetensorsFile file_;
};

Checkpoint start_of(const Recording& recording) {
  const nlohmann::json config = recording.json("config");
  Checkpoint start;
  start.config = {.input_size = config["input_size"],
                  .patch_size = config["patch_size"],
                  .in_channels = config["in_channels"],
                  .hidden_size = config["hidden_size"],
                  .depth = config["depth"],
                  .num_heads = config["num_heads"],
                  .mlp_hidden = 4 * config["hidden_size"].get<int>(),
                  .num_classes = config["num_classes"],
                  .learn_sigma = config["learn_sigma"],
                  .width_routers = true,
                  .token_routers = true};
  start.weights = recording.tensors("weights.");
  return start;
}

TrainOptions options_of(const Recording& recording) {
  const nlohmann::json json = recording.json("options");
  TrainOptions options;
  options.dynamic = true;
  options.router = {.lambda = json["lambda"],
                    .anneal_start = json["anneal-start"],
                    .anneal_steps = json["anneal-steps"],
                    .complete_steps = json["complete-steps"]};
  options.total_steps = kSteps;
  options.global_batch = kBatch;
  options.lr = json["lr"];
  options.weight_decay = json["weight-decay"];
  options.skip_norm = json["skip-norm"];
  options.clip_grad = json["clip-grad"];
  options.ema_decay = json["ema-decay"];
  return options;
}

// Samples [first, first + count) of step `step`.
StepInputs inputs_of(const Recording& recording, int step, int first, int count) {
  const auto rows = [&](const std::string& name) {
    return recording.tensor(name)[step].slice(0, first, first + count).contiguous();
  };
  StepInputs inputs;
  inputs.x0 = rows("input.x0");
  inputs.noise = rows("input.noise");
  inputs.t = rows("input.t");
  inputs.x_t = q_sample(inputs.x0, inputs.t, inputs.noise);
  inputs.y = rows("input.y");
  inputs.y_complete = rows("input.y_complete");
  for (int l = 0; l < 2; ++l) {
    inputs.gate_noise.heads.push_back(rows(fmt::format("gumbel.heads.{}", l)));
    inputs.gate_noise.groups.push_back(rows(fmt::format("gumbel.groups.{}", l)));
    inputs.gate_noise.tokens.push_back(rows(fmt::format("gumbel.tokens.{}", l)));
  }
  return inputs;
}

void expect_terms(const Recording& recording, const StepTerms& terms, double grad_norm, int step) {
  const auto check = [&](const char* name, double got) {
    const double wanted = recording.value(fmt::format("out.{}", name), step);
    EXPECT_NEAR(got, wanted, kTolerance * std::max(1.0, std::abs(wanted))) << name << " of step " << step;
  };
  check("loss", terms.loss());
  check("mse", terms.mse);
  check("vb", terms.vb);
  check("complete_mse", terms.complete_mse);
  check("complete_vb", terms.complete_vb);
  check("flops_loss", terms.flops_loss);
  check("ratio", terms.ratio);
  check("inference_ratio", terms.inference_ratio);
  check("grad_norm", grad_norm);
}

double norm_wise(const at::Tensor& got, const at::Tensor& wanted) {
  return ((got - wanted).norm() / wanted.norm()).item<double>();
}

// The loop of train(), fed by the recording.
void replay(int accumulate) {
  const Recording recording;
  TrainOptions options = options_of(recording);
  options.accumulate = accumulate;
  DiT model = make_model(start_of(recording));
  model->train();
  ParameterStore store(model, options.router_lr_scale);
  Communicator alone;
  RunState state;
  for (int step = 0; step < kSteps; ++step) {
    const int micro = kBatch / accumulate;
    const StepTerms terms = compute_gradient(model, store, options, alone, step, 0, [&](int m) {
      return inputs_of(recording, step, m * micro, micro);
    });
    const double grad_norm = store.grad_norm();
    expect_terms(recording, terms, grad_norm, step);
    const int64_t skipped = state.skipped;
    apply_update(model, store, options, grad_norm, state);
    EXPECT_EQ(state.skipped - skipped, recording.value("out.skipped", step)) << "step " << step;
  }
  EXPECT_EQ(state.skipped, 2);
  EXPECT_EQ(state.updates, kSteps - 2);
  const Weights ema = store.ema_weights();
  for (const auto& [name, wanted] : recording.tensors("ema.")) {
    EXPECT_LT(norm_wise(ema.at(name), wanted), kTolerance) << name;
  }
}

TEST(Finetune, TenLossesAndTheEmaAreTheRecordedPyTorchLoops) { replay(/*accumulate=*/1); }

TEST(Finetune, MicroBatchesReplayTheRecordingToo) { replay(/*accumulate=*/2); }

}  // namespace
}  // namespace dydit
