// Losses on features: formulas written out once more in double, what each hook reads and adds to a step's
// gradient, and what is refused. Recorded losses and gradients are replayed by `dydit verify`.
#include "dydit/train/hooks.h"

#include <cmath>

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "dydit/base/noise.h"
#include "dydit/diffusion/losses.h"
#include "dydit/model/edit.h"
#include "dydit/train/trainer.h"
#include "tests/support/families.h"
#include "tests/support/files.h"
#include "tests/support/noise_images.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::random_tensor;

constexpr int kBatch = 8;
constexpr Objective kVelocity = {Path::Linear, Prediction::Velocity, ModelClock::Data};

// The images themselves, coarser: grid x grid positions of 4 channels.
FeatureEncoder coarse_images(int grid) {
  return {
      .sha256 = "coarse", .side = 8, .grid = grid, .channels = 4, .features = [grid](const at::Tensor& x0) {
        const int64_t size = x0.size(2) / grid;
        return at::avg_pool2d(x0, {size, size}).flatten(2).transpose(1, 2);
      }};
}

// Of each kind, fit for the tiny models of two blocks.
HookOptions tiny_hooks(Align align, double plr = 0) {
  HookOptions hooks{.align = align, .block = 1, .teacher_block = 2, .plr = plr};
  if (align == Align::Encoder) hooks.encoder = coarse_images(4);
  return hooks;
}

TrainOptions tiny_training(const HookOptions& hooks) {
  TrainOptions options;
  options.hooks = hooks;
  options.global_batch = kBatch;
  options.lr = 1e-3;
  options.seed = 3;
  return options;
}

StepInputs inputs_of(const DiTConfig& config, const TrainOptions& options, uint64_t step, int first,
                     int count) {
  const int values = config.in_channels * config.input_size * config.input_size;
  Batch batch{.step = step, .images = std::vector<float>(size_t(count) * values), .labels = {}};
  for (int b = 0; b < count; ++b) {
    fill_normal({batch.images.data() + size_t(b) * values, size_t(values)}, /*seed=*/31,
                step * 1000 + first + b, 0);
    batch.labels.push_back((first + b) % std::max(1, config.num_classes));
  }
  StepInputs inputs = make_step_inputs(config, options, batch, first, 0, count);
  inputs.x0 = inputs.x0.clone();  // the batch ends here
  return inputs;
}

// A model that trains with hooks, its average apart from its weights.
struct Trained {
  Trained(const Checkpoint& start, const TrainOptions& options) : options(options), model(make_model(start)) {
    model->train();
    if (options.hooks.any()) hooks.emplace(options.hooks, model, options.seed);
    store.emplace(model, 1);
    store->ema.mul_(0.9);
    if (options.hooks.align == Align::Self) hooks->set_teacher(store->average_view(model));
  }

  StepTerms gradient(uint64_t step) {
    Communicator alone;
    const int micro = kBatch / options.accumulate;
    return compute_gradient(model, *store, options, alone, step, 0,
                            [&](int m) { return inputs_of(model->config, options, step, m * micro, micro); },
                            {.hooks = hooks ? &*hooks : nullptr});
  }

  const TrainOptions options;
  DiT model;
  std::optional<Hooks> hooks;
  std::optional<ParameterStore> store;
};

Checkpoint tiny_start() { return test::random_checkpoint(test::static_config()); }

// --- What a forward shows.

void expect_taps(const DiTConfig& config) {
  DiT model = test::random_model(config);
  const test::Inputs inputs = test::random_inputs(config, 3);
  const at::Tensor t_emb = model->embed_timestep(at::tensor({10, 500, 900}));
  const at::Tensor y = inputs.labels() % std::max(1, config.label_rows());
  Taps taps{.blocks = {0, 1}, .asks_mlp_inputs = true};
  const at::Tensor plain = model->forward(inputs.x, t_emb, y);
  EXPECT_TRUE(at::equal(model->forward(inputs.x, t_emb, y, {}, /*level=*/0, &taps), plain));
  ASSERT_EQ(taps.mlp_inputs.size(), static_cast<size_t>(config.depth));
  ASSERT_EQ(taps.outputs.size(), 2u);
  const std::vector<int64_t> shape = {3, config.sequence(), config.hidden_size};
  EXPECT_EQ(taps.outputs.at(0).sizes(), shape);
  // Block 1 goes on where block 0 ends; what went into its MLP is what came out of it, and its gate.
  const at::Tensor c = config.time_token              ? at::Tensor()
                       : model->label_table.defined() ? t_emb + at::embedding(model->label_table, y)
                                                      : t_emb;
  at::Tensor mlp_input;
  EXPECT_TRUE(at::equal(model->blocks[1]->forward(taps.outputs.at(0), c, {}, at::kFloat, {}, &mlp_input),
                        taps.outputs.at(1)));
  EXPECT_TRUE(at::equal(mlp_input, taps.mlp_inputs[1]));
  EXPECT_EQ(mlp_input.sizes(), shape);

  Taps only{.blocks = {0}, .ends_there = true};
  EXPECT_FALSE(model->forward(inputs.x, t_emb, y, {}, /*level=*/0, &only).defined());
  EXPECT_TRUE(at::equal(only.outputs.at(0), taps.outputs.at(0)));
}

TEST(Taps, ShowTheBlocksAndChangeNoBit) { expect_taps(test::static_config()); }

TEST(Taps, OfAUViTHoldTheTokensInFront) {
  DiTConfig config = test::static_config();
  config.depth = 3;
  expect_taps(with_uvit(config));
}

TEST(Taps, AreInTheComputeDtype) {
  DiT model = test::random_model(test::static_config(), at::kBFloat16);
  const test::Inputs inputs = test::random_inputs(model->config, 1);
  Taps taps{.blocks = {1}, .asks_mlp_inputs = true};
  model->forward(inputs.x, model->embed_timestep(at::tensor({10})), inputs.labels(), {}, /*level=*/0, &taps);
  EXPECT_EQ(taps.mlp_inputs[0].scalar_type(), at::kBFloat16);
  EXPECT_EQ(taps.outputs.at(1).scalar_type(), at::kFloat);
}

// --- Formulas.

double cosine(const at::Tensor& a, const at::Tensor& b) {
  return ((a * b).sum() / (a.norm() * b.norm())).item<double>();
}

TEST(HookLoss, CosineAndManifoldsAreThoseOfAllPairs) {
  const at::Tensor z = random_tensor({3, 5, 4}, 1, 0).to(at::kDouble),
                   y = random_tensor({3, 5, 4}, 1, 1).to(at::kDouble);
  double inter = 0;
  for (int b = 0; b < 3; ++b) {
    double along = 0, intra = 0;
    for (int i = 0; i < 5; ++i) {
      along -= cosine(z[b][i], y[b][i]) / 5;
      for (int j = 0; j < 5; ++j)
        intra += std::pow(cosine(z[b][i], z[b][j]) - cosine(y[b][i], y[b][j]), 2) / 25;
    }
    for (int other = 0; other < 3; ++other)
      inter +=
          std::pow(cosine(z[b].mean(0), z[other].mean(0)) - cosine(y[b].mean(0), y[other].mean(0)), 2) / 9;
    EXPECT_NEAR(cosine_loss(z, y)[b].item<double>(), along, 1e-12);
    EXPECT_NEAR(manifold_intra(z, y)[b].item<double>(), intra, 1e-12);
  }
  EXPECT_NEAR(manifold_inter(z, y).item<double>(), inter, 1e-12);
  const HookOptions options{.align = Align::Encoder, .weight = 0.3, .manifold = 2, .manifold_inter = 5};
  const at::Tensor whole = 0.3 * (cosine_loss(z, y) + 2 * manifold_intra(z, y) + 5 * manifold_inter(z, y));
  EXPECT_TRUE(at::allclose(encoder_loss(z, y, options), whole, 1e-12));
}

double dispersive_in_double(const at::Tensor& z, double tau) {
  const at::Tensor flat = z.to(at::kDouble).flatten(1);
  double sum = 0;
  for (int a = 0; a < flat.size(0); ++a)
    for (int b = 0; b < flat.size(0); ++b)
      sum += std::exp(-(flat[a] - flat[b]).square().sum().item<double>() /
                      (static_cast<double>(flat.size(1)) * tau));
  return std::log(sum / static_cast<double>(flat.size(0) * flat.size(0)));
}

TEST(HookLoss, DispersiveIsThatOfAllPairs) {
  const at::Tensor z = random_tensor({6, 5, 4}, 2, 0);
  for (const double tau : {0.5, 1.0})
    EXPECT_NEAR(dispersive_loss(z, tau).item<double>(), dispersive_in_double(z, tau), 1e-6);
}

// Features that have most in common, as those of early blocks: differences of products would be noise.
TEST(HookLoss, DispersiveLosesNothingToWhatAllImagesShare) {
  const at::Tensor z = random_tensor({6, 64, 32}, 2, 1, 0.1) + 100 * random_tensor({1, 64, 32}, 2, 2);
  const double want = dispersive_in_double(z, 0.5);
  EXPECT_NEAR(dispersive_loss(z, 0.5).item<double>(), want, 1e-3 * std::abs(want));
  at::Tensor leaf = z.clone().set_requires_grad(true), exact = z.to(at::kDouble).set_requires_grad(true);
  dispersive_loss(leaf, 0.5).backward();
  dispersive_loss(exact, 0.5).backward();
  EXPECT_LT(test::relative_difference(leaf.grad().to(at::kDouble), exact.grad()), 1e-3);
}

TEST(HookLoss, SelfIsSmoothAroundZero) {
  const at::Tensor target = at::zeros({2, 1, 2});
  const at::Tensor prediction = at::tensor({0.02f, -0.03f, 1.0f, -2.0f}).view({2, 1, 2});
  const at::Tensor loss = self_loss(prediction, target);
  EXPECT_NEAR(loss[0].item<double>(), 0.5 * (0.02 * 0.02 + 0.03 * 0.03) / 0.05 / 2, 1e-7);
  EXPECT_NEAR(loss[1].item<double>(), ((1 - 0.025) + (2 - 0.025)) / 2, 1e-6);
}

TEST(HookLoss, PatchesAreInTheOrderOfTheFinalLayer) {
  const at::Tensor image = at::arange(2 * 3 * 4 * 4, at::kFloat).view({2, 3, 4, 4});
  const at::Tensor patches = to_patches(image, 2);
  ASSERT_EQ(patches.sizes(), (std::vector<int64_t>{2, 4, 12}));
  for (int n = 0; n < 4; ++n)
    for (int p = 0; p < 2; ++p)
      for (int q = 0; q < 2; ++q)
        for (int c = 0; c < 3; ++c)
          EXPECT_EQ(patches[1][n][(2 * p + q) * 3 + c].item<float>(),
                    image[1][c][2 * (n / 2) + p][2 * (n % 2) + q].item<float>());
}

TEST(HookLoss, TokensAreResizedAsAMap) {
  const at::Tensor map = random_tensor({2, 3, 4, 4}, 4, 0);
  const at::Tensor tokens = map.flatten(2).transpose(1, 2);
  EXPECT_TRUE(at::equal(resize_tokens(tokens, 4), tokens));
  const at::Tensor half = at::avg_pool2d(map, {2, 2}).flatten(2).transpose(1, 2);
  EXPECT_TRUE(at::allclose(resize_tokens(tokens, 2), half, 1e-5, 1e-6));
}

TEST(TeacherTime, LiesNearerToTheImageAndNeverAtTheTablesFirst) {
  EXPECT_EQ(teacher_time({}, 500, 0.7), 500);
  EXPECT_EQ(teacher_time({}, 500, 199.9), 301);
  EXPECT_EQ(teacher_time({}, 100, 199.9), 1);
  EXPECT_EQ(teacher_time({}, 0, 0), 1);
  EXPECT_EQ(teacher_time({}, 999, 0), 999);
  EXPECT_NEAR(teacher_time(kVelocity, 0.3, 100), 0.4, 1e-12);  // of its clock 1 is the image
  EXPECT_EQ(teacher_time(kVelocity, 0.95, 100), 1);
  EXPECT_NEAR(teacher_time({Path::Linear, Prediction::Velocity, ModelClock::Noise}, 0.3, 100), 0.2, 1e-12);
}

TEST(MakeStepInputs, TheTeachersTimesAreDrawnOverTheWholeInterval) {
  const TrainOptions options = tiny_training(tiny_hooks(Align::Self));
  const DiTConfig config = test::static_config();
  std::vector<int> lags(200);
  for (uint64_t step = 0; step < 100; ++step) {
    const StepInputs inputs = inputs_of(config, options, step, 0, 64);
    const at::Tensor lag = inputs.t - inputs.t_teacher;
    for (int b = 0; b < 64; ++b) {
      if (inputs.t[b].item<int64_t>() < 200) continue;
      ASSERT_GE(lag[b].item<int64_t>(), 0);
      ASSERT_LT(lag[b].item<int64_t>(), 200);
      ++lags[lag[b].item<int64_t>()];
    }
  }
  for (const int count : lags) EXPECT_NEAR(count, 5120 / 200, 20);  // four deviations
}

TEST(MakeStepInputs, TheTeachersTimesDependNotOnHowTheBatchIsCut) {
  for (const Objective& objective : {Objective(), kVelocity}) {
    DiTConfig config = with_objective(test::static_config(), objective);
    TrainOptions options = tiny_training(tiny_hooks(Align::Self));
    const StepInputs all = inputs_of(config, options, 4, 0, 16), part = inputs_of(config, options, 4, 5, 6);
    EXPECT_TRUE(at::equal(all.t_teacher.slice(0, 5, 11), part.t_teacher));
    EXPECT_EQ(all.t_teacher.scalar_type(), all.t.scalar_type());
    EXPECT_FALSE(at::equal(all.t_teacher, inputs_of(config, options, 5, 0, 16).t_teacher));
    options.hooks.align = Align::None;
    EXPECT_FALSE(inputs_of(config, options, 4, 0, 16).t_teacher.defined());
  }
}

// --- Parameters.

std::map<std::string, at::Tensor> hook_parameters(const HookOptions& options, uint64_t seed) {
  DiT model = test::random_model(test::static_config());
  const Hooks hooks(options, model, seed);
  std::map<std::string, at::Tensor> result;
  for (const auto& parameter : model->named_parameters())
    if (parameter.key().starts_with("hooks.")) result[parameter.key()] = parameter.value().detach();
  return result;
}

TEST(Hooks, StartByTheSeedAndTheirNamesAlone) {
  const auto self = hook_parameters(tiny_hooks(Align::Self), 1),
             again = hook_parameters(tiny_hooks(Align::Self, /*plr=*/0.1), 1),
             other = hook_parameters(tiny_hooks(Align::Self), 2);
  ASSERT_EQ(self.size(), 4u);
  EXPECT_EQ(again.size(), 4u + 2 * 4);
  for (const auto& [name, value] : self) {
    EXPECT_TRUE(at::equal(value, again.at(name))) << name;
    EXPECT_EQ(at::equal(value, other.at(name)), value.dim() == 1) << name;
    if (value.dim() == 1) {
      EXPECT_EQ(value.abs().max().item<float>(), 0) << name;
    }
  }
  const at::Tensor& weight = self.at("hooks.self.linear1.weight");
  ASSERT_EQ(weight.sizes(), (std::vector<int64_t>{128, 64}));
  const double bound = std::sqrt(6.0 / (128 + 64));
  EXPECT_LE(weight.abs().max().item<double>(), bound);
  EXPECT_NEAR(weight.std().item<double>(), bound / std::sqrt(3.0), 0.02 * bound);
  EXPECT_FALSE(at::equal(again.at("hooks.plr.0.0.weight"), again.at("hooks.plr.1.0.weight")));
  EXPECT_EQ(
      hook_parameters(tiny_hooks(Align::Encoder), 1).at("hooks.encoder.norm.weight").min().item<float>(), 1);
  EXPECT_TRUE(hook_parameters(tiny_hooks(Align::Dispersive), 1).empty());
}

TEST(Hooks, NeitherTheModelFileNorTheTeacherHasTheirParameters) {
  Trained trained(tiny_start(), tiny_training(tiny_hooks(Align::Self, 0.1)));
  const Checkpoint start = tiny_start();
  const Weights average = trained.store->ema_weights();
  EXPECT_EQ(average.size(), start.weights.size());
  for (const auto& [name, value] : start.weights) EXPECT_TRUE(average.contains(name)) << name;
  EXPECT_GT(trained.store->values.numel(), start.num_parameters());
}

// --- What they add to a step.

// The sum of what the hooks are to add, (B), written out: of the model with its hooks' parameters on it.
at::Tensor expected_losses(DiT& model, const Checkpoint& average, const TrainOptions& options,
                           const StepInputs& in, const at::Tensor& y, at::Tensor& output) {
  const HookOptions& hooks = options.hooks;
  const DiTConfig& config = model->config;
  Taps taps{.blocks = {0, 1}, .asks_mlp_inputs = true};
  output = model->forward(in.x_t, model->embed_timestep(in.t), y, {}, /*level=*/0, &taps);
  const at::Tensor h = taps.outputs.at(0);
  auto parameters = model->named_parameters();
  const auto layer = [&](const std::string& name, const at::Tensor& x) {
    return at::linear(x, parameters["hooks." + name + ".weight"], parameters["hooks." + name + ".bias"]);
  };
  at::Tensor sum = at::zeros({in.x0.size(0)});
  if (hooks.align == Align::Dispersive) sum = sum + 0.5 * dispersive_loss(h, hooks.tau);
  if (hooks.align == Align::Self) {
    DiT teacher = make_model(average);
    Taps deep{.blocks = {1}};
    const at::NoGradGuard no_grad;
    teacher->forward(q_sample(in.x0, in.t_teacher, in.noise), teacher->embed_timestep(in.t_teacher), y, {},
                     /*level=*/0, &deep);
    const at::AutoGradMode with_gradient(true);
    sum =
        sum + 0.04 * self_loss(layer("self.linear2", at::silu(layer("self.linear1", h))), deep.outputs.at(1));
  }
  if (hooks.align == Align::Encoder) {
    const at::Tensor normed = at::layer_norm(h, {config.hidden_size}, parameters["hooks.encoder.norm.weight"],
                                             parameters["hooks.encoder.norm.bias"], 1e-5);
    sum = sum + encoder_loss(resize_tokens(layer("encoder.linear", normed), hooks.encoder.grid),
                             hooks.encoder.features(in.x0), hooks);
  }
  for (int l = 0; hooks.plr > 0 && l < config.depth; ++l) {
    const std::string name = "plr." + std::to_string(l);
    const at::Tensor predicted = layer(name + ".2", at::gelu(layer(name + ".0", taps.mlp_inputs[l])));
    sum = sum + hooks.plr / config.depth *
                    (predicted - to_patches(in.noise, config.patch_size)).square().flatten(1).mean(1);
  }
  return sum;
}

// compute_gradient against one autograd of the whole loss.
void expect_plain_autograd(const TrainOptions& options, const Checkpoint& start) {
  constexpr uint64_t kStep = 2;
  Trained trained(start, options);
  const StepTerms terms = trained.gradient(kStep);

  DiT plain = make_model(start);
  plain->train();
  const Hooks registered(options.hooks, plain, options.seed);
  Checkpoint average = start;
  for (auto& [name, value] : average.weights)
    if (name != "pos_embed") value = value * 0.9f;
  const StepInputs in = inputs_of(plain->config, options, kStep, 0, kBatch);
  const at::Tensor& y = options.dynamic ? in.y_complete : in.y;
  at::Tensor output;
  const at::Tensor hooks = expected_losses(plain, average, options, in, y, output);
  const DiffusionLoss complete = diffusion_loss(output, in.x0, in.x_t, in.t, in.noise);
  at::Tensor loss = (complete.mse + complete.vb + hooks).mean();
  if (options.dynamic) {
    const at::Tensor t_emb = plain->embed_timestep(in.t);
    const TrainingGates gates(plain, t_emb, in.gate_noise, options.router.gates);
    const DiffusionLoss dynamic =
        diffusion_loss(plain->forward(in.x_t, t_emb, in.y, gates.gates()), in.x0, in.x_t, in.t, in.noise);
    loss = loss + (dynamic.mse + dynamic.vb).mean() +
           flops_loss(gates.ratio().mean(), target_ratio(options.router, kStep));
  }
  loss.backward();
  EXPECT_NEAR(terms.loss(), loss.item<double>(), 1e-5 * loss.item<double>());
  EXPECT_NEAR(terms.hooks[0] + terms.hooks[1], hooks.mean().item<double>(), 1e-5);
  const auto parameters = plain->named_parameters();
  int heads = 0;
  for (const auto& parameter : trained.model->named_parameters()) {
    const at::Tensor &got = parameter.value().grad(), &wanted = parameters[parameter.key()].grad();
    if (!wanted.defined()) continue;  // pos_embed
    const double norm = wanted.norm().item<double>();
    EXPECT_LT((got - wanted).norm().item<double>(), 1e-4 * norm + 1e-6) << parameter.key();
    heads += parameter.key().starts_with("hooks.") && norm > 0;
  }
  EXPECT_EQ(heads > 0, options.hooks.align != Align::Dispersive || options.hooks.plr > 0);
}

TEST(HookGradient, EqualsPlainAutograd) {
  expect_plain_autograd(tiny_training(tiny_hooks(Align::Self)), tiny_start());
  expect_plain_autograd(tiny_training(tiny_hooks(Align::Encoder)), tiny_start());
  expect_plain_autograd(tiny_training(tiny_hooks(Align::Dispersive)), tiny_start());
  expect_plain_autograd(tiny_training(tiny_hooks(Align::None, 0.1)), tiny_start());
}

TEST(HookGradient, OfACoarserEncoderEqualsPlainAutograd) {
  TrainOptions options = tiny_training(tiny_hooks(Align::Encoder, 0.1));
  options.hooks.encoder = coarse_images(2);
  options.hooks.manifold_inter = 1;
  expect_plain_autograd(options, tiny_start());
}

TEST(HookGradient, OfAFinetuneIsThatOfTheCompleteModel) {
  TrainOptions options = tiny_training(tiny_hooks(Align::Self, 0.1));
  options.dynamic = true;
  options.router = {.lambda = 0.5, .anneal_start = 0, .anneal_steps = 1, .complete_steps = 5};
  expect_plain_autograd(options, add_routers(tiny_start(), {.width_bias = 0, .token_bias = 0}, 5));
}

TEST(HookGradient, DependsNotOnMicroBatches) {
  TrainOptions options = tiny_training(tiny_hooks(Align::Self, 0.1));
  Trained whole(tiny_start(), options);
  options.accumulate = 4;
  Trained cut(tiny_start(), options);
  const StepTerms a = whole.gradient(1), b = cut.gradient(1);
  for (size_t i = 0; i < kMostHooks; ++i) EXPECT_NEAR(a.hooks[i], b.hooks[i], 1e-5 * a.hooks[i]);
  EXPECT_LT(test::relative_difference(cut.store->grads, whole.store->grads), 1e-4);
}

// At the first step of no alignment the step is that of a run without.
TEST(HookGradient, EndsWhereTheAlignmentDoes) {
  TrainOptions options = tiny_training(tiny_hooks(Align::Self));
  options.hooks.until = 3;
  Trained aligned(tiny_start(), options), plain(tiny_start(), tiny_training({}));
  EXPECT_GT(aligned.gradient(2).hooks[0], 0);
  EXPECT_FALSE(aligned.hooks->taps(3).has_value());
  const StepTerms terms = aligned.gradient(3), wanted = plain.gradient(3);
  EXPECT_EQ(terms.hooks[0], 0);
  EXPECT_EQ(terms.loss(), wanted.loss());
  EXPECT_TRUE(at::equal(aligned.store->grads.slice(0, 0, plain.store->grads.numel()), plain.store->grads));
  options.hooks.plr = 0.1;  // which has no end
  Trained both(tiny_start(), options);
  const StepTerms later = both.gradient(3);
  EXPECT_EQ(later.hooks[0], 0);
  EXPECT_GT(later.hooks[1], 0);
}

TEST(HookGradient, FamiliesTrainWithAllOfThem) {
  DiTConfig uvit = test::static_config();
  uvit.depth = 3;
  for (const DiTConfig& config : {with_uvit(uvit), with_objective(test::static_config(), kVelocity)}) {
    for (const Align align : {Align::Self, Align::Encoder, Align::Dispersive}) {
      Trained trained(test::random_checkpoint(config), tiny_training(tiny_hooks(align, 0.1)));
      const StepTerms terms = trained.gradient(0);
      EXPECT_TRUE(std::isfinite(terms.loss()));
      EXPECT_NE(terms.hooks[0], 0);
      EXPECT_GT(terms.hooks[1], 0);
      EXPECT_TRUE(std::isfinite(trained.store->grad_norm()));
    }
  }
}

// The per-layer loss of a velocity model asks for the velocity.
TEST(HookGradient, PerLayerPredictsWhatTheModelDoes) {
  const DiTConfig config = with_objective(test::static_config(), kVelocity);
  Trained trained(test::random_checkpoint(config), tiny_training(tiny_hooks(Align::None, 1)));
  for (auto& parameter : trained.model->named_parameters())
    if (parameter.key().starts_with("hooks.")) parameter.value().detach().zero_();
  const StepTerms terms = trained.gradient(0);
  const StepInputs in = inputs_of(config, trained.options, 0, 0, kBatch);
  EXPECT_NEAR(terms.hooks[0], (in.x0 - in.noise).square().mean().item<double>(), 1e-5);
}

// --- Options.

TEST(HookOptions, AreNamedInTheIdentityWhereTheyAreOnAlone) {
  const nlohmann::json none = options_to_json(TrainOptions());
  for (const auto& [key, value] : none.items()) EXPECT_FALSE(key.starts_with("align") || key == "plr") << key;
  HookOptions self = tiny_hooks(Align::Self, 0.1);
  EXPECT_EQ(hooks_to_json(self), (nlohmann::json{{"align", "self"},
                                                 {"align-block", 1},
                                                 {"align-weight", 0.04},
                                                 {"align-until", 0},
                                                 {"align-teacher-block", 2},
                                                 {"align-interval", 200},
                                                 {"plr", 0.1}}));
  EXPECT_EQ(hooks_to_json(tiny_hooks(Align::Encoder)).at("align-encoder"), "coarse");
  EXPECT_EQ(hooks_to_json(tiny_hooks(Align::Encoder)).at("align-weight"), 0.5);
  EXPECT_EQ(hooks_to_json(tiny_hooks(Align::Dispersive)).at("align-tau"), 0.5);
  EXPECT_EQ(hook_names(self), (std::vector<std::string>{"align_self", "plr"}));
}

class Refused : public testing::Test {
 protected:
  void expect(const std::string& message, int processes = 1) {
    test::expect_error([&] { check_training(data_, config_, options_, processes); }, message);
  }
  void expect_taken(int processes = 1) {
    EXPECT_NO_THROW(check_training(data_, config_, options_, processes));
  }

  static DiTConfig pixels() {
    DiTConfig config = test::static_config();
    config.in_channels = 3;
    return config;
  }

  const test::NoiseImages data_;
  DiTConfig config_ = pixels();
  TrainOptions options_ = tiny_training(tiny_hooks(Align::Self));
};

TEST_F(Refused, BlocksThatAreNotThere) {
  options_.hooks.teacher_block = 3;
  expect("--align-teacher-block 3: the model has 2 blocks");
  options_.hooks.align = Align::Dispersive;
  expect_taken();
  options_.hooks.block = 5;
  expect("--align-block 5: the model has 2 blocks");
}

TEST_F(Refused, ComparisonsOfImagesThatABatchIsCutBetween) {
  options_.hooks.align = Align::Dispersive;
  options_.accumulate = 2;
  expect(
      "--align dispersive: compares all images of a batch, which 1 process(es) x 2 micro-batches would cut");
  options_.accumulate = 1;
  expect("2 process(es) x 1 micro-batches", /*processes=*/2);
  expect_taken();
  options_.hooks = tiny_hooks(Align::Encoder);
  expect_taken(/*processes=*/2);
  options_.hooks.manifold_inter = 1;
  expect("--align-manifold-inter: compares all images", /*processes=*/2);
}

TEST_F(Refused, AnEncoderOfOtherImages) {
  options_.hooks = tiny_hooks(Align::Encoder);
  expect_taken();
  options_.hooks.encoder.side = 32;
  expect("--align-encoder: takes RGB images of 32x32 pixels, and these are images of 8x8 with 3 channels");
}

TEST_F(Refused, AFinetuneWhoseCompleteModelIsNotTrainedAsLong) {
  config_.width_routers = config_.token_routers = options_.dynamic = true;
  options_.total_steps = 10;
  options_.router.complete_steps = 9;
  expect(
      "--complete-steps 9: --align sees the complete model alone, which must be trained for as long, here "
      "10 steps");
  options_.hooks.until = 9;
  expect_taken();
  options_.hooks.plr = 0.1;
  expect("here 10 steps");
  options_.router.complete_steps = 10;
  expect_taken();
}

TEST_F(Refused, ModelsOfSeveralPatchSizes) {
  config_.level_from = {0};
  expect("--align: is for models of one patch size, this one has 2");
}

}  // namespace
}  // namespace dydit
