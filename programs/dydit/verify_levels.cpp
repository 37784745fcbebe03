// Levels of patch sizes (FlexiDiT): how they start, forwards of both, weak guidance, a training step, and
// PPFlow's weights as levels. The model of the vectors has one patch size; its level 1 is among them.
#include <algorithm>
#include <tuple>

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/diffusion/guidance.h"
#include "dydit/model/dit.h"
#include "dydit/model/edit.h"
#include "dydit/model/macs.h"
#include "verify.h"

namespace dydit {
namespace {

constexpr int kLevel = 1;

struct Outcome {
  at::Tensor out;  // (B, out_channels, side, side)
  TokenTrace tokens;
  std::vector<StepPlan> steps;
};

Outcome forward_at(const Checkpoint& checkpoint, const VerifyContext& context, EngineKind kind, Mode mode,
                   int level) {
  const at::Tensor x = checked_input(context, "x");
  const std::vector<double> t = checked_timesteps(context, "t");
  const std::vector<int64_t> y = checked_labels(context, "y", x.size(0));
  const RunPlan plan = make_width_plan(checkpoint, t, mode);
  Outcome outcome{{}, {}, level > 0 ? plan.larger.at(level - 1) : plan.steps};
  std::vector<Row> rows;
  for (size_t b = 0; b < y.size(); ++b) rows.push_back({&outcome.steps[b], y[b]});
  std::vector<Work> work(rows.size());
  ForwardOutputs outputs{{}, work, &outcome.tokens};
  const auto engine = make_engine(kind, checkpoint, context.options(kind, at::kFloat));
  engine->forward(x, rows, *engine->make_workspace({.threads = context.threads}), outputs);
  outcome.out = outputs.out;
  return outcome;
}

// (B, L, H)
at::Tensor masks_of(const Outcome& outcome, const DiTConfig& config,
                    std::vector<uint8_t> BlockWidth::*parts) {
  const at::Tensor masks =
      at::empty({static_cast<int64_t>(outcome.steps.size()), config.depth, config.num_heads}, at::kFloat);
  float* mask = masks.data_ptr<float>();
  for (const StepPlan& step : outcome.steps) {
    for (const BlockWidth& width : step.blocks)
      mask = std::copy((width.*parts).begin(), (width.*parts).end(), mask);
  }
  return masks;
}

void count(const std::string& name, const at::Tensor& got, const at::Tensor& want, VerifyReport& report) {
  DYDIT_CHECK(got.sizes() == want.sizes(), "{}: does not have the shape of this model's decisions", name);
  report.count(name, (got != want).sum().item<int64_t>(), want.numel());
}

void verify_forwards(const Checkpoint& leveled, const VerifyContext& context, EngineKind kind,
                     VerifyReport& report) {
  const Reference& reference = context.reference;
  const DiTConfig& config = leveled.config;
  const std::string suffix = fmt::format(" ({})", kEngineNames[kind]);
  at::Tensor complete[kLevel + 1];
  for (int level = 0; level <= kLevel; ++level) {
    const std::string name = fmt::format("level{}", level);
    complete[level] = forward_at(leveled, context, kind, Mode::Static, level).out;
    report.compare("out_" + name + "_static" + suffix, complete[level],
                   reference.at("out_" + name + "_static"), kForwardTolerance);
    const Outcome outcome = forward_at(leveled, context, kind, Mode::Dynamic, level);
    count("attn_mask_" + name + suffix, masks_of(outcome, config, &BlockWidth::heads),
          reference.at("attn_mask_" + name), report);
    count("mlp_mask_" + name + suffix, masks_of(outcome, config, &BlockWidth::groups),
          reference.at("mlp_mask_" + name), report);
    count("token_mask_" + name + suffix, outcome.tokens.masks.slice(2, 0, config.num_tokens(level)),
          reference.at("token_mask_" + name), report);
    report.compare("out_" + name + suffix, outcome.out, reference.at("out_" + name), kForwardTolerance);
  }
  const at::Tensor guided = reference.at("guided_eps");  // of the complete model
  at::Tensor both = at::cat({complete[0], complete[kLevel]});
  apply_guidance(both, reference.at("guide_scale").item<float>(), static_cast<int>(guided.size(1)));
  report.compare("guided_eps" + suffix, both.slice(0, 0, guided.size(0)).slice(1, 0, guided.size(1)), guided,
                 kForwardTolerance);
}

at::Tensor eps_of(const at::Tensor& out, const DiTConfig& config) {
  return out.slice(1, 0, config.in_channels);
}

// No gates: mse of the level's prediction, its gradient, and the mse between the levels.
void verify_step(const Checkpoint& leveled, const VerifyContext& context, VerifyReport& report) {
  const Reference& reference = context.reference;
  DiT model = make_model(leveled);
  model->train();
  const at::Tensor x = checked_input(context, "x"), t = reference.at("t"),
                   y = reference.at("y").to(at::kLong);
  const auto eps = [&](int level) {
    return eps_of(model->forward(x, model->embed_timestep(t, level), y, {}, level), leveled.config);
  };
  const at::Tensor weak = eps(kLevel);
  const at::Tensor mse = (weak - reference.at("noise")).square().mean();
  mse.backward();
  report.compare("mse_level1", mse.view({1}), reference.at("mse_level1"), kTrainingTolerance);
  auto parameters = model->named_parameters();
  constexpr std::string_view kGradient = "grad.";
  for (const std::string& name : reference.names()) {
    if (!name.starts_with(kGradient)) continue;
    const at::Tensor *parameter = parameters.find(name.substr(kGradient.size())), want = reference.at(name);
    DYDIT_CHECK(parameter && parameter->grad().defined() && parameter->grad().sizes() == want.sizes(),
                "{}: {} does not fit the model", reference.path(), name);
    report.error(name, ((parameter->grad() - want).norm() / want.norm()).item<double>(), kTrainingTolerance);
  }
  at::NoGradGuard no_grad;
  report.compare("distill_mse", (eps(0) - weak.detach()).square().mean({1, 2, 3}),
                 reference.at("distill_mse"), kTrainingTolerance);
}

// PPFlow gives both levels a vector, and a patch the position of its corner: row 1 of the vectors, the small
// patch's, goes into the timestep's bias, and what is left of row 0 is level 1's.
void verify_ppflow(const Checkpoint& leveled, const VerifyContext& context, VerifyReport& report) {
  const Reference& reference = context.reference;
  const DiTConfig& config = leveled.config;
  at::NoGradGuard no_grad;
  Checkpoint folded = leveled;
  const at::Tensor vectors = reference.at("ppflow_level_embedding");
  at::Tensor& bias = folded.weights.at("t_embedder.mlp.2.bias");
  bias = bias + vectors[1];
  folded.weights["levels.1.embedding"] = vectors[0] - vectors[1];
  folded.weights["pos_embed"] = reference.at("ppflow_pos_embed");
  folded.weights["levels.1.pos_embed"] = reference.at("pos_embed_corner");
  DiT model = make_model(folded);
  const int64_t rows = reference.at("ppflow_out_weak").size(0);
  const at::Tensor x = checked_input(context, "x").slice(0, 0, rows),
                   y = reference.at("y").to(at::kLong).slice(0, 0, rows), times = reference.at("ppflow_t");
  for (const auto& [name, level, index] :
       {std::tuple{"ppflow_out_weak", kLevel, 0}, std::tuple{"ppflow_out_strong", 0, 1}}) {
    const at::Tensor t = times[index].expand({rows});
    report.compare(name, eps_of(model->forward(x, model->embed_timestep(t, level), y, {}, level), config),
                   reference.at(name), kForwardTolerance);
  }
}

}  // namespace

void verify_levels(const VerifyContext& context, VerifyReport& report) {
  DYDIT_USAGE_CHECK(context.dtype == at::kFloat,
                    "--dtype bf16: levels of patch sizes are compared in float32 only; use --dtype f32");
  const Reference& reference = context.reference;
  const Checkpoint first = add_levels(context.checkpoint, {0});  // as a fine-tune begins
  const DiTConfig& config = first.config;
  Checkpoint leveled = first;
  for (const char* name : {"x_embedder.proj.weight", "x_embedder.proj.bias", "final_layer.linear.weight",
                           "final_layer.linear.bias", "pos_embed", "embedding"}) {
    const std::string key = fmt::format("levels.1.{}", name);
    const at::Tensor& recorded = reference.at(key);
    DYDIT_CHECK(recorded.sizes() == first.weights.at(key).sizes(), "{}: {} has shape ({}), {} takes ({})",
                reference.path(), key, fmt::join(recorded.sizes(), ", "), context.checkpoint.path.string(),
                fmt::join(first.weights.at(key).sizes(), ", "));
    leveled.weights[key] = recorded;
    if (reference.has("init." + key))
      report.compare("init." + key, first.weights.at(key), reference.at("init." + key), kForwardTolerance);
  }
  report.compare("pos_embed_centre", first.weights.at("levels.1.pos_embed"), reference.at("pos_embed_centre"),
                 kForwardTolerance);
  const at::Tensor block_macs = at::empty({kLevel + 1}, at::kLong), patch_macs = at::empty_like(block_macs);
  for (int level = 0; level <= kLevel; ++level) {
    const int64_t blocks = config.depth * (attention_macs(config, config.num_heads, level) +
                                           mlp_macs(config, config.num_heads, config.num_tokens(level)));
    const int64_t ends =
        int64_t{config.num_tokens(level)} * config.hidden_size *
        (config.patch_values(level) + config.patch(level) * config.patch(level) * config.out_channels());
    block_macs[level] = blocks;
    patch_macs[level] = ends;
  }
  count("block_macs", block_macs, reference.at("block_macs"), report);
  count("patch_macs", patch_macs, reference.at("patch_macs"), report);
  for (const EngineKind kind : context.engines()) verify_forwards(leveled, context, kind, report);
  verify_step(leveled, context, report);
  if (reference.has("ppflow_out_weak")) verify_ppflow(first, context, report);
  report.skip("flexidit_Q_embed, flexidit_bilinear_up, flexidit_deembed_bias",
              "FlexiDiT's one weight for all sizes, projected; here each level has its own");
}

}  // namespace dydit
