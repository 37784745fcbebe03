// Recorded forwards. In bf16 a token near its threshold may flip, and what its row does from there on
// differs: such rows are left out of the comparison, or where most rows are such, their flipped patches.
#include <algorithm>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/diffusion/guidance.h"
#include "dydit/model/embeddings.h"
#include "verify.h"

namespace dydit {
namespace {

constexpr int64_t kMaxListedFlips = 32;

struct ForwardResult {
  at::Tensor out;     // (B, out_channels, side, side)
  at::Tensor heads;   // (B, L, H) masks of the plan
  at::Tensor groups;  // (B, L, H)
  TokenTrace tokens;  // undefined tensors when tokens are not routed
  Margin margin;
};

// (B, L, H)
at::Tensor plan_masks(const RunPlan& plan, std::vector<uint8_t> BlockWidth::*parts) {
  const DiTConfig& config = plan.config;
  const at::Tensor masks =
      at::empty({static_cast<int64_t>(plan.steps.size()), config.depth, config.num_heads}, at::kFloat);
  float* mask = masks.data_ptr<float>();
  for (const StepPlan& step : plan.steps) {
    for (const BlockWidth& width : step.blocks)
      mask = std::copy((width.*parts).begin(), (width.*parts).end(), mask);
  }
  return masks;
}

ForwardResult run_forward(const VerifyContext& context, const at::Tensor& x, const std::vector<double>& t,
                          const std::vector<int64_t>& y, Mode mode, EngineKind kind, at::ScalarType dtype) {
  Replay replay(context, kind, dtype);
  ForwardResult result;
  result.out = replay.forward(x, t, y, mode, result.tokens);
  result.heads = plan_masks(replay.plan(), &BlockWidth::heads);
  result.groups = plan_masks(replay.plan(), &BlockWidth::groups);
  result.margin = replay.margin();
  return result;
}

// Without the rows of a variance that nobody trained.
at::Tensor predicted(const at::Tensor& out, const DiTConfig& config) {
  return config.objective.prediction == Prediction::Velocity ? out.slice(1, 0, config.in_channels) : out;
}

int64_t disagreements(const at::Tensor& a, const at::Tensor& b) { return (a != b).sum().item<int64_t>(); }

// Disagreements (B, L, N) that no earlier one of their row has caused: those of the first block with any.
at::Tensor first_flips(const at::Tensor& masks, const at::Tensor& want) {
  const at::Tensor flips = masks != want, blocks = flips.any(2).to(at::kInt);  // (B, L)
  return flips.logical_and((blocks.cumsum(1) - blocks == 0).unsqueeze(2));
}

// (B, N) 1 where a token is compared: all of the rows whose decisions agree, where that is half of them or
// more; else the tokens whose own decisions agree in every block.
at::Tensor compared_tokens(const at::Tensor& masks, const at::Tensor& want) {
  const at::Tensor tokens = (masks == want).all(1);  // (B, N)
  const at::Tensor rows = tokens.all(1, /*keepdim=*/true);
  const bool most = 2 * rows.sum().item<int64_t>() >= rows.size(0);
  return (most ? rows.expand_as(tokens) : tokens).to(at::kFloat).contiguous();
}

// (B, N) of tokens -> (B, 1, side, side) of values.
at::Tensor token_weight(const at::Tensor& tokens, const DiTConfig& config) {
  return tokens.view({-1, 1, config.grid(), config.grid()})
      .repeat_interleave(config.patch_size, 2)
      .repeat_interleave(config.patch_size, 3);
}

void list_flips(const at::Tensor& masks, const at::Tensor& want, const at::Tensor& logits,
                VerifyReport& report) {
  const at::Tensor flips = at::nonzero(masks != want);
  for (int64_t i = 0; i < flips.size(0); ++i) {
    if (i == kMaxListedFlips) {
      report.note(fmt::format("... and {} more", flips.size(0) - i));
      break;
    }
    const int64_t row = flips[i][0].item<int64_t>(), block = flips[i][1].item<int64_t>(),
                  token = flips[i][2].item<int64_t>();
    report.note(fmt::format("row {} block {} token {}: logit {:+.2e}, recorded {}", row, block, token,
                            logits[row][block][token].item<double>(),
                            want[row][block][token].item<double>() > 0 ? "on" : "off"));
  }
}

void verify_guided(const VerifyContext& context, VerifyReport& report) {
  const DiTConfig& config = context.checkpoint.config;
  const at::Tensor recorded = checked_input(context, "cfg_x");
  DYDIT_CHECK(recorded.size(0) % 2 == 0, "{}: cfg_x holds {} rows, expected two halves",
              context.reference.path(), recorded.size(0));
  const at::Tensor half = recorded.slice(0, 0, recorded.size(0) / 2), x = at::cat({half, half});
  const std::vector<double> t = checked_timesteps(context, "cfg_t");
  DYDIT_CHECK(static_cast<int64_t>(t.size()) == x.size(0), "{}: cfg_t holds {} timesteps, cfg_x {} rows",
              context.reference.path(), t.size(), x.size(0));
  const std::vector<int64_t> y = checked_labels(context, "cfg_y", x.size(0));
  ForwardResult result = run_forward(context, x, t, y, Mode::Dynamic, context.engine, context.dtype);
  apply_guidance(result.out, context.reference.at("cfg_scale").item<float>(),
                 std::min(config.guided_channels, config.in_channels));
  at::Tensor weight;
  if (context.dtype != at::kFloat && result.tokens.masks.defined()) {
    // Decisions of these rows are not recorded: the float32 reference run stands in.
    const ForwardResult exact =
        run_forward(context, x, t, y, Mode::Dynamic, EngineKind::Reference, at::kFloat);
    const auto halves = compared_tokens(result.tokens.masks, exact.tokens.masks).chunk(2);
    const at::Tensor both = halves[0] * halves[1];
    weight = token_weight(at::cat({both, both}), config);
  }
  report.compare("cfg_out", predicted(result.out, config), context.reference.at("cfg_out"),
                 context.dtype == at::kFloat ? kForwardTolerance : kBf16Tolerance, weight);
}

}  // namespace

void verify_forward(const VerifyContext& context, VerifyReport& report) {
  c10::InferenceMode guard;
  const Reference& reference = context.reference;
  const DiTConfig& config = context.checkpoint.config;
  const bool exact = context.dtype == at::kFloat;
  const double tolerance = exact ? kForwardTolerance : kBf16Tolerance;
  const at::Tensor x = checked_input(context, "x");
  const std::vector<double> t = checked_timesteps(context, "t");
  DYDIT_CHECK(static_cast<int64_t>(t.size()) == x.size(0), "{}: t holds {} timesteps, x {} rows",
              reference.path(), t.size(), x.size(0));
  const std::vector<int64_t> y =
      config.num_classes > 0 ? checked_labels(context, "y", x.size(0)) : std::vector<int64_t>(x.size(0), 0);

  if (reference.has("pos_embed_formula")) {
    report.compare("pos_embed_formula", sincos_pos_embed(config.hidden_size, config.grid()),
                   reference.at("pos_embed_formula"), kForwardTolerance);
  }
  const ForwardResult dynamic = run_forward(context, x, t, y, Mode::Dynamic, context.engine, context.dtype);
  for (const auto& [name, masks] :
       {std::pair{"attn_mask", dynamic.heads}, std::pair{"mlp_mask", dynamic.groups}}) {
    if (!reference.has(name)) continue;
    const at::Tensor& want = reference.at(name);
    DYDIT_CHECK(want.sizes() == masks.sizes(), "{}: {} does not have shape (rows, blocks, heads)",
                reference.path(), name);
    report.count(name, disagreements(masks, want), want.numel());
  }
  at::Tensor weight;
  if (reference.has("token_mask")) {
    // Of the tokens in front of the patches, too, which are always on.
    const at::Tensor want = reference.at("token_mask").slice(2, config.extras()).contiguous();
    const at::Tensor masks = dynamic.tokens.masks.defined()
                                 ? dynamic.tokens.masks
                                 : at::ones({x.size(0), config.depth, config.num_tokens()});
    DYDIT_CHECK(want.sizes() == masks.sizes(), "{}: token_mask does not have shape (rows, blocks, tokens)",
                reference.path());
    if (exact) {
      report.count("token_mask", disagreements(masks, want), want.numel());
    } else {
      report.count("token_mask", first_flips(masks, want).sum().item<int64_t>(), want.numel(),
                   kBf16TokenFlipShare);
    }
    if (dynamic.tokens.logits.defined()) list_flips(masks, want, dynamic.tokens.logits, report);
    if (!exact) weight = token_weight(compared_tokens(masks, want), config);
  }
  // In bf16 the flipped decisions are counted above and left out here.
  report.compare("out", predicted(dynamic.out, config), reference.at("out"), tolerance, weight,
                 exact ? &dynamic.margin : nullptr);
  if (reference.has("out_all_channels"))
    report.compare("out_all_channels", dynamic.out, reference.at("out_all_channels"), tolerance, weight,
                   exact ? &dynamic.margin : nullptr);
  if (reference.has("t_emb"))
    report.compare("t_emb", embed_timesteps(context.checkpoint, at::tensor(t, at::kDouble)),
                   reference.at("t_emb"), kForwardTolerance);
  if (reference.has("out_static")) {
    report.compare(
        "out_static",
        predicted(run_forward(context, x, t, y, Mode::Static, context.engine, context.dtype).out, config),
        reference.at("out_static"), tolerance);
  }
  if (reference.has("cfg_out")) verify_guided(context, report);
}

}  // namespace dydit
