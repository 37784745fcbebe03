// One step's gradient: against a plain autograd of the whole loss, and the same however the global batch is
// cut over processes and micro-batches.
#include "dydit/train/step.h"

#include <array>
#include <barrier>
#include <cmath>
#include <fstream>
#include <malloc.h>
#include <string>
#include <thread>

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "dydit/base/noise.h"
#include "dydit/diffusion/losses.h"
#include "dydit/model/edit.h"
#include "tests/support/default_dtype.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

constexpr int kBatch = 16;
// Of the complete-model term's last step and the first one without it.
constexpr std::array kSteps = {4, 5};
// Each draws other gates, noise and timesteps.
constexpr std::array<uint64_t, 3> kSeeds = {3, 4, 5};

// The sums of two processes that are threads of this one.
class TwoThreads {
 public:
  class Rank final : public Communicator {
   public:
    Rank(TwoThreads& both, int rank) : both_(both), rank_(rank) {}
    int rank() const override { return rank_; }
    int size() const override { return 2; }
    void sum(std::span<float> values) override { both_.sum(both_.floats_, rank_, values); }
    void sum(std::span<double> values) override { both_.sum(both_.doubles_, rank_, values); }
    void barrier() override { both_.meet_.arrive_and_wait(); }

   private:
    TwoThreads& both_;
    const int rank_;
  };

 private:
  template <typename T>
  void sum(std::array<std::span<T>, 2>& spans, int rank, std::span<T> values) {
    spans[rank] = values;
    meet_.arrive_and_wait();
    if (rank == 0) {
      ASSERT_EQ(spans[0].size(), spans[1].size());
      for (size_t i = 0; i < values.size(); ++i) spans[0][i] = spans[1][i] += spans[0][i];
    }
    meet_.arrive_and_wait();
  }

  std::barrier<> meet_{2};
  std::array<std::span<float>, 2> floats_;
  std::array<std::span<double>, 2> doubles_;
};

// Gates that are decided by noise from the first step on, and a target far from the ratio.
TrainOptions tiny_finetune(uint64_t seed = kSeeds[0]) {
  TrainOptions options;
  options.dynamic = true;
  options.router = {.lambda = 0.5, .anneal_start = 0, .anneal_steps = 1, .complete_steps = 5};
  options.global_batch = kBatch;
  options.lr = 1e-4;
  options.seed = seed;
  return options;
}

Checkpoint tiny_start() {
  return add_routers(test::random_checkpoint(test::static_config()), {.width_bias = 0, .token_bias = 0}, 5);
}

// Samples [first, first + count) of step `step`.
Batch make_batch(const DiTConfig& config, uint64_t step, int first, int count) {
  const int values = config.in_channels * config.input_size * config.input_size;
  Batch batch{.step = step, .images = std::vector<float>(size_t(count) * values), .labels = {}};
  for (int b = 0; b < count; ++b) {
    fill_normal({batch.images.data() + size_t(b) * values, size_t(values)}, /*seed=*/31,
                step * 1000 + first + b, 0);
    batch.labels.push_back((first + b) % config.num_classes);
  }
  return batch;
}

// compute_gradient of the micro-batches of `batch`, this process's share of its step from sample `first` on.
StepTerms gradient_of(DiT& model, ParameterStore& store, const TrainOptions& options, Communicator& processes,
                      int first, Batch& batch) {
  const auto micro = static_cast<int64_t>(batch.labels.size()) / options.accumulate;
  return compute_gradient(model, store, options, processes, batch.step, first, [&](int m) {
    return make_step_inputs(model->config, options, batch, first, m * micro, micro);
  });
}

// What a gradient and its terms come to, in one process or in one of several.
struct Trace {
  std::vector<StepTerms> terms;
  std::vector<double> norms;
  std::vector<at::Tensor> gradients;
  std::vector<std::map<std::string, at::Tensor>> router_gradients;
};

// Of each of kSteps, from the same weights: an update in between would turn the rounding of a small gradient
// into a step of the whole learning rate, and from there a gate falls the other way sooner or later. Within
// one step a gate does so only where its noise meets the threshold within rounding, one in a million.
Trace run_share(const TrainOptions& options, Communicator& processes) {
  DiT model = make_model(tiny_start());
  model->train();
  ParameterStore store(model, options.router_lr_scale);
  const int share = kBatch / processes.size(), first = processes.rank() * share;
  Trace trace;
  for (const int step : kSteps) {
    Batch batch = make_batch(model->config, step, first, share);
    trace.terms.push_back(gradient_of(model, store, options, processes, first, batch));
    trace.norms.push_back(store.grad_norm());
    trace.gradients.push_back(store.grads.clone());
    std::map<std::string, at::Tensor>& routers = trace.router_gradients.emplace_back();
    for (const auto& parameter : model->named_parameters()) {
      if (is_router_parameter(parameter.key())) routers[parameter.key()] = parameter.value().grad().clone();
    }
  }
  return trace;
}

// The same for every test of a seed.
const Trace& single(uint64_t seed) {
  static std::map<uint64_t, Trace> traces;
  if (!traces.contains(seed)) {
    Communicator alone;
    traces[seed] = run_share(tiny_finetune(seed), alone);
  }
  return traces.at(seed);
}

// Each within 1e-4 of its size (terms below one: absolutely).
void expect_near(double got, double wanted, const std::string& what) {
  EXPECT_NEAR(got, wanted, 1e-4 * std::max(1.0, std::abs(wanted))) << what;
}

void expect_agreement(const Trace& trace, uint64_t seed) {
  for (size_t s = 0; s < kSteps.size(); ++s) {
    const StepTerms &got = trace.terms[s], &wanted = single(seed).terms[s];
    const auto check = [&](double value, double reference, const char* what) {
      expect_near(value, reference, fmt::format("{} of step {}, seed {}", what, kSteps[s], seed));
    };
    check(got.mse, wanted.mse, "mse");
    check(got.vb, wanted.vb, "vb");
    check(got.complete_mse, wanted.complete_mse, "complete mse");
    check(got.complete_vb, wanted.complete_vb, "complete vb");
    check(got.ratio, wanted.ratio, "ratio");
    check(got.inference_ratio, wanted.inference_ratio, "inference ratio");
    check(got.flops_loss, wanted.flops_loss, "flops loss");
    check(trace.norms[s], single(seed).norms[s], "gradient norm");
    for (int q = 0; q < kQuarters; ++q) {
      check(got.heads[q], wanted.heads[q], "heads");
      check(got.groups[q], wanted.groups[q], "groups");
      check(got.tokens[q], wanted.tokens[q], "tokens");
    }
    EXPECT_LT(test::relative_difference(trace.gradients[s], single(seed).gradients[s]), 1e-4);
    // A ratio squared before it is averaged over the global batch shows here first.
    ASSERT_EQ(trace.router_gradients[s].size(), 2u * (2 + 2 + 4));
    for (const auto& [name, gradient] : trace.router_gradients[s]) {
      EXPECT_LT(test::relative_difference(gradient, single(seed).router_gradients[s].at(name)), 1e-4)
          << name << " of step " << kSteps[s] << ", seed " << seed;
    }
  }
}

TEST(ComputeGradient, TheTinyFinetuneTestsSomething) {
  for (const uint64_t seed : kSeeds) {
    for (size_t s = 0; s < kSteps.size(); ++s) {
      const StepTerms& terms = single(seed).terms[s];
      EXPECT_GT(terms.ratio, 0.05);
      EXPECT_LT(terms.ratio, 0.9);
      EXPECT_NE(terms.ratio, terms.inference_ratio);
      EXPECT_GT(terms.flops_loss, 0);
      EXPECT_EQ(terms.complete_mse > 0, kSteps[s] < 5);
      EXPECT_EQ(terms.complete_vb > 0, kSteps[s] < 5);
      EXPECT_NE(terms.mse, terms.complete_mse);
      EXPECT_GT(single(seed).norms[s], 1e-3);
    }
  }
  EXPECT_NE(single(kSeeds[0]).terms[0].ratio, single(kSeeds[1]).terms[0].ratio);
}

TEST(ComputeGradient, AccumulationAgreesWithOneBatch) {
  for (const uint64_t seed : kSeeds) {
    TrainOptions options = tiny_finetune(seed);
    options.accumulate = 2;
    Communicator alone;
    expect_agreement(run_share(options, alone), seed);
  }
}

TEST(ComputeGradient, TwoProcessesAgreeWithOne) {
  const int threads = at::get_num_threads();
  for (const uint64_t seed : kSeeds) {
    TwoThreads both;
    std::array<Trace, 2> traces;
    const auto work = [&](int rank) {
      at::set_num_threads(1);  // two teams on the same cores would wait for each other
      TwoThreads::Rank processes(both, rank);
      traces[rank] = run_share(tiny_finetune(seed), processes);
    };
    std::thread other(work, 1);
    work(0);
    other.join();
    expect_agreement(traces[0], seed);
    for (size_t s = 0; s < kSteps.size(); ++s)
      EXPECT_TRUE(at::equal(traces[0].gradients[s], traces[1].gradients[s]));
    EXPECT_EQ(traces[0].norms, traces[1].norms);
  }
  at::set_num_threads(threads);
}

// The loss written as method.md has it, differentiated in one piece; each gradient within 1e-4 of its norm.
void expect_plain_autograd(const TrainOptions& options, uint64_t step) {
  DiT model = make_model(tiny_start());
  ParameterStore store(model, 1);
  Communicator alone;
  Batch batch = make_batch(model->config, step, 0, kBatch);
  const StepTerms terms = gradient_of(model, store, options, alone, 0, batch);

  DiT plain = make_model(tiny_start());
  plain->train();
  const DiTConfig& config = plain->config;
  const StepInputs in = make_step_inputs(config, options, batch, 0, 0, kBatch);
  const at::Tensor t_emb = plain->embed_timestep(in.t);
  const TrainingGates gates(plain, t_emb, in.gate_noise, options.router.gates);
  const DiffusionLoss dynamic =
      diffusion_loss(plain->forward(in.x_t, t_emb, in.y, gates.gates()), in.x0, in.x_t, in.t, in.noise);
  at::Tensor loss =
      (dynamic.mse + dynamic.vb).mean() + flops_loss(gates.ratio().mean(), options.router.lambda);
  if (options.router.complete_steps > static_cast<int>(step)) {
    const DiffusionLoss complete = diffusion_loss(
        plain->forward(in.x_t, plain->embed_timestep(in.t), in.y_complete), in.x0, in.x_t, in.t, in.noise);
    loss = loss + (complete.mse + complete.vb).mean();
  }
  loss.backward();
  EXPECT_NEAR(terms.loss(), loss.item<double>(), 1e-5 * loss.item<double>());
  const auto parameters = plain->named_parameters();
  for (const auto& parameter : model->named_parameters()) {
    const at::Tensor &got = parameter.value().grad(), &wanted = parameters[parameter.key()].grad();
    if (!wanted.defined()) continue;  // pos_embed
    // k's bias has a gradient of rounding alone.
    const double norm = wanted.norm().item<double>();
    EXPECT_LT((got - wanted).norm().item<double>(), 1e-4 * norm + 1e-6) << parameter.key();
  }
}

TEST(ComputeGradient, EqualsPlainAutogradWithTheCompleteTerm) { expect_plain_autograd(tiny_finetune(), 2); }

TEST(ComputeGradient, EqualsPlainAutogradOfAccumulatedSoftGates) {
  TrainOptions options = tiny_finetune();
  options.router.gates = GateKind::Soft;
  options.accumulate = 4;
  expect_plain_autograd(options, 7);
}

TEST(ComputeGradient, AStaticModelHasNoDynamicTerms) {
  TrainOptions options = tiny_finetune();
  options.dynamic = false;
  DiT model = make_model(test::random_checkpoint(test::static_config()));
  ParameterStore store(model, 1);
  Communicator alone;
  Batch batch = make_batch(model->config, 0, 0, kBatch);
  const StepTerms terms = gradient_of(model, store, options, alone, 0, batch);
  EXPECT_EQ(terms.ratio, 1);
  EXPECT_EQ(terms.inference_ratio, 1);
  EXPECT_EQ(terms.flops_loss, 0);
  EXPECT_EQ(terms.complete_mse, 0);
  for (int q = 0; q < kQuarters; ++q) EXPECT_EQ(terms.heads[q], 1);
  EXPECT_GT(terms.mse, 0);
  EXPECT_GT(store.grad_norm(), 0);
}

// Level 1 from t = 500 on: half of a stratified batch.
Checkpoint start_of_levels(const std::vector<int>& level_from) {
  return add_levels(tiny_start(), level_from);
}

StepTerms terms_of_levels(DiT& model, const TrainOptions& options, Batch& batch, at::Tensor& gradient) {
  ParameterStore store(model, 1);
  Communicator alone;
  const StepTerms terms = gradient_of(model, store, options, alone, 0, batch);
  gradient = store.grads.clone();
  return terms;
}

// Each level's samples by themselves, and the FLOPs term of each level's mean by its share of the samples.
TEST(ComputeGradient, OfLevelsByTimeEqualsPlainAutogradOfEachLevelsSamples) {
  const TrainOptions options = tiny_finetune();
  constexpr uint64_t kStep = 2;
  DiT model = make_model(start_of_levels({500})), plain = make_model(start_of_levels({500}));
  model->train();
  plain->train();
  Batch batch = make_batch(model->config, kStep, 0, kBatch);
  ParameterStore store(model, 1);
  Communicator alone;
  const StepTerms terms = gradient_of(model, store, options, alone, 0, batch);

  const StepInputs all = make_step_inputs(plain->config, options, batch, 0, 0, kBatch);
  at::Tensor loss = at::zeros({});
  for (const int level : {0, 1}) {
    const at::Tensor rows = at::nonzero(level == 1 ? all.t >= 500 : all.t < 500).flatten();
    ASSERT_EQ(rows.numel(), kBatch / 2);
    const StepInputs in = all.select(rows, level);
    const at::Tensor t_emb = plain->embed_timestep(in.t, level);
    const TrainingGates gates(plain, t_emb, in.gate_noise, GateKind::Hard, {}, level);
    const auto loss_of = [&](const at::Tensor& out) {
      const DiffusionLoss parts = diffusion_loss(out, in.x0, in.x_t, in.t, in.noise);
      return (parts.mse + parts.vb).sum() / kBatch;
    };
    loss = loss + loss_of(plain->forward(in.x_t, t_emb, in.y, gates.gates(), level));
    loss = loss + loss_of(plain->forward(in.x_t, t_emb, in.y_complete, {}, level)) +
           flops_loss(gates.ratio().mean(), options.router.lambda) / 2;
  }
  loss.backward();
  EXPECT_NEAR(terms.loss(), loss.item<double>(), 1e-5 * loss.item<double>());
  const auto parameters = plain->named_parameters();
  for (const auto& parameter : model->named_parameters()) {
    const at::Tensor &got = parameter.value().grad(), &wanted = parameters[parameter.key()].grad();
    if (!wanted.defined()) continue;  // positions
    EXPECT_LT((got - wanted).norm().item<double>(), 1e-4 * wanted.norm().item<double>() + 1e-6)
        << parameter.key();
  }
}

TEST(ComputeGradient, OfLevelsByTimeDoesNotDependOnMicroBatches) {
  TrainOptions options = tiny_finetune();
  Batch batch = make_batch(test::tiny_config(), 2, 0, kBatch);
  at::Tensor whole, cut;
  DiT first = make_model(start_of_levels({500})), second = make_model(start_of_levels({500}));
  const StepTerms want = terms_of_levels(first, options, batch, whole);
  options.accumulate = 2;
  const StepTerms got = terms_of_levels(second, options, batch, cut);
  EXPECT_LT(test::relative_difference(cut, whole), 1e-4);
  EXPECT_NEAR(got.flops_loss, want.flops_loss, 1e-6);
  EXPECT_GT(want.flops_loss, 0);
}

TEST(ComputeGradient, OfLevelsByStepReachesTheStepsLevelAlone) {
  const TrainOptions options = tiny_finetune();
  for (const int level : {0, 1}) {
    uint64_t step = 0;
    Batch batch;
    DiT model = make_model(start_of_levels({0}));
    do {
      batch = make_batch(model->config, ++step, 0, kBatch);
    } while (make_step_inputs(model->config, options, batch, 0, 0, kBatch).level != level);
    at::Tensor gradient;
    terms_of_levels(model, options, batch, gradient);
    const auto touched = [&](const at::Tensor& weight) { return weight.grad().norm().item<double>() > 0; };
    EXPECT_EQ(touched(model->patch_weight), level == 0);
    EXPECT_EQ(touched(model->larger[0]->patch_weight), level == 1);
    EXPECT_EQ(touched(model->larger[0]->embedding), level == 1);
  }
}

TEST(MakeStepInputs, DrawEachLevelEquallyOften) {
  const DiTConfig config = test::levels_config();
  const TrainOptions options = tiny_finetune();
  std::array<int, 3> steps{};
  for (uint64_t step = 0; step < 600; ++step) {
    Batch batch = make_batch(config, step, 5, 1);
    const int level = make_step_inputs(config, options, batch, 5, 0, 1).level;
    ++steps[level];
    Batch other = make_batch(config, step, 0, 1);
    EXPECT_EQ(make_step_inputs(config, options, other, 0, 0, 1).level, level) << "of all samples alike";
  }
  for (const int count : steps) EXPECT_NEAR(count, 200, 45);
}

StepInputs inputs_of(const TrainOptions& options, uint64_t step, int first, int count) {
  const DiTConfig config = test::tiny_config();
  Batch batch = make_batch(config, step, first, count);
  StepInputs inputs = make_step_inputs(config, options, batch, first, 0, count);
  inputs.x0 = inputs.x0.clone();  // the batch ends here
  return inputs;
}

TEST(MakeStepInputs, DoNotDependOnHowTheBatchIsCut) {
  const StepInputs all = inputs_of(tiny_finetune(), 4, 0, 16), part = inputs_of(tiny_finetune(), 4, 5, 6);
  const auto same = [](const at::Tensor& whole, const at::Tensor& cut) {
    return at::equal(whole.slice(0, 5, 11), cut);
  };
  EXPECT_TRUE(same(all.x0, part.x0));
  EXPECT_TRUE(same(all.noise, part.noise));
  EXPECT_TRUE(same(all.x_t, part.x_t));
  EXPECT_TRUE(same(all.t, part.t));
  EXPECT_TRUE(same(all.y, part.y));
  EXPECT_TRUE(same(all.y_complete, part.y_complete));
  EXPECT_TRUE(same(all.gate_noise.tokens[1], part.gate_noise.tokens[1]));
}

TEST(MakeStepInputs, TimestepsAreStratifiedByGlobalIndex) {
  std::array<bool, 1000> seen{};
  for (uint64_t step = 0; step < 100; ++step) {
    const at::Tensor t = inputs_of(tiny_finetune(), step, 3, 64).t;
    for (int b = 0; b < 64; ++b) {
      const int64_t value = t[b].item<int64_t>();
      ASSERT_EQ(value / 250, (3 + b) % 4) << value;
      seen[value] = true;
    }
  }
  // 6,400 draws of 1,000 values leave about 2 unseen.
  EXPECT_GT(std::count(seen.begin(), seen.end(), true), 985);
}

// Of the first step, whose inputs `change` has changed.
template <typename Change>
StepTerms terms_of(const TrainOptions& options, DiT& model, ParameterStore& store, const Change& change) {
  Communicator alone;
  return compute_gradient(model, store, options, alone, 0, 0, [&](int) {
    StepInputs inputs = inputs_of(options, 0, 0, options.global_batch);
    change(inputs);
    return inputs;
  });
}

// The width routers' share of heads by quarter of t, however t is drawn.
TEST(ComputeGradient, StatisticsGoByTheTimestepNotByTheSample) {
  TrainOptions options = tiny_finetune();
  options.global_batch = 16;
  DiT model = make_model(tiny_start());
  ParameterStore store(model, 1);
  const auto terms_at = [&](const std::vector<int64_t>& t) {
    return terms_of(options, model, store, [&](StepInputs& inputs) { inputs.t = at::tensor(t, at::kLong); });
  };
  std::vector<int64_t> t(16, 100);
  t[3] = 600;
  const StepTerms terms = terms_at(t);
  EXPECT_EQ(terms.drawn, (std::array<double, kQuarters>{15, 0, 1, 0}));
  EXPECT_TRUE(std::isnan(terms.heads[1]) && std::isnan(terms.tokens[3]));
  EXPECT_GT(terms.heads[0], 0);
  EXPECT_GT(terms.heads[2], 0);
  const StepTerms only = terms_at(std::vector<int64_t>(16, 100));
  EXPECT_NEAR(only.heads[0], terms.heads[0],
              0.2);  // not thinned by the quarter that the other sample went to
}

TEST(ComputeGradient, WeighsTheMseAndTheWorkAsTheInputsSay) {
  TrainOptions options = tiny_finetune();
  options.global_batch = 4;
  DiT model = make_model(tiny_start());
  ParameterStore store(model, 1);
  const auto terms_with = [&](const at::Tensor& loss_weight, const at::Tensor& visits) {
    return terms_of(options, model, store, [&](StepInputs& inputs) {
      inputs.loss_weight = loss_weight;
      inputs.visits = visits;
    });
  };
  const StepTerms plain = terms_with({}, {});
  EXPECT_EQ(plain.weighted_mse, plain.mse);
  const at::Tensor plain_gradient = store.grads.clone();
  const StepTerms ones = terms_with(at::ones({4}), at::ones({4}));
  EXPECT_TRUE(at::equal(store.grads, plain_gradient));
  EXPECT_EQ(ones.loss(), plain.loss());

  const StepTerms half = terms_with(at::full({4}, 0.5f), {});
  EXPECT_EQ(half.mse, plain.mse);  // comparable between runs
  EXPECT_NEAR(half.weighted_mse, plain.mse / 2, 1e-9);
  EXPECT_NEAR(half.loss(), plain.loss() - plain.mse / 2 - plain.complete_mse / 2, 1e-6);
  EXPECT_FALSE(at::equal(store.grads, plain_gradient));

  const StepTerms twice = terms_with({}, at::full({4}, 2.0f));
  EXPECT_NEAR(twice.ratio, 2 * plain.ratio, 1e-6);
  EXPECT_NEAR(twice.inference_ratio, 2 * plain.inference_ratio, 1e-6);
  const double target = target_ratio(options.router, 0);
  EXPECT_NEAR(twice.flops_loss, 2 * std::pow(2 * plain.ratio - target, 2), 1e-6);
}

// A pair of SpeeD's may lie in two micro-batches, or two processes.
TEST(MakeStepInputs, SpeedDependsNotOnHowTheBatchIsCut) {
  TrainOptions options = tiny_finetune();
  options.timesteps.draw = TimestepDraw::Speed;
  const StepInputs all = inputs_of(options, 4, 0, 16), part = inputs_of(options, 4, 5, 6);
  for (const auto& [whole, cut] : {std::pair{all.t, part.t}, std::pair{all.loss_weight, part.loss_weight},
                                   std::pair{all.visits, part.visits}})
    EXPECT_TRUE(at::equal(whole.slice(0, 5, 11), cut));
}

// What a mean over the samples of even times would be: of the time itself.
TEST(MakeStepInputs, VisitsUndoHowOftenTimesAreDrawn) {
  TrainOptions options = tiny_finetune();
  options.global_batch = 64;
  for (const GateRule rule : {GateRule::Threshold, GateRule::Capacity}) {
    for (const TimestepDraw draw : {TimestepDraw::Speed, TimestepDraw::LogitNormal}) {
      if (rule == GateRule::Threshold && draw == TimestepDraw::LogitNormal) continue;  // refused
      options.timesteps.draw = draw;
      options.router.gate_rule = rule;
      std::array<double, kQuarters> mass{};
      double all = 0;
      for (uint64_t step = 0; step < 200; ++step) {
        const StepInputs in = inputs_of(options, step, 0, 64);
        for (int b = 0; b < 64; ++b) mass[in.t[b].item<int64_t>() / 250] += in.visits[b].item<float>();
        all += 64;
      }
      for (const double quarter : mass) EXPECT_NEAR(quarter / all, 0.25, 0.03);
    }
  }
  options.timesteps.draw = TimestepDraw::Uniform;
  EXPECT_FALSE(inputs_of(options, 0, 0, 4).visits.defined());
}

TEST(MakeStepInputs, LabelsAreDroppedAtTheirRateAndTwiceIndependently) {
  TrainOptions options = tiny_finetune();
  options.label_dropout = 0.3;
  const StepInputs in = inputs_of(options, 0, 0, 2000);
  const at::Tensor dropped = in.y == 5, complete = in.y_complete == 5;  // 5: the null class
  EXPECT_NEAR(dropped.to(at::kDouble).mean().item<double>(), 0.3, 0.05);
  EXPECT_NEAR(complete.to(at::kDouble).mean().item<double>(), 0.3, 0.05);
  EXPECT_NEAR((dropped & complete).to(at::kDouble).mean().item<double>(), 0.09, 0.03);
  const at::Tensor labels = at::arange(2000, at::kLong) % 5;
  EXPECT_TRUE(at::equal(in.y.masked_select(~dropped), labels.masked_select(~dropped)));
  options.label_dropout = 0;
  EXPECT_TRUE(at::equal(inputs_of(options, 0, 0, 2000).y, labels));
}

// The first gradient, with or without routers, where new tensors are float64 by default.
TEST(ComputeGradient, DoesNotDependOnTheDefaultType) {
  for (const bool dynamic : {false, true}) {
    TrainOptions options = tiny_finetune();
    options.dynamic = dynamic;
    options.global_batch = 8;
    const auto gradient = [&] {
      DiT model = make_model(dynamic ? tiny_start() : test::random_checkpoint(test::static_config()));
      model->train();
      ParameterStore store(model, options.router_lr_scale);
      Communicator alone;
      Batch batch = make_batch(model->config, 0, 0, 8);
      gradient_of(model, store, options, alone, 0, batch);
      store.adamw_step({.lr = options.lr}, 1);
      store.ema_step(0.5);
      return at::cat({store.grads, store.values, store.ema});
    };
    const at::Tensor wanted = gradient();
    const test::DoubleByDefault scope;
    EXPECT_TRUE(at::equal(gradient(), wanted)) << (dynamic ? "dynamic" : "static");
  }
}

// A line of /proc/self/status in bytes.
double status(const std::string& name) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name)) return std::stod(line.substr(line.find(':') + 1)) * 1024;
  }
  return 0;
}

// A bound from below, and near enough to be of use: a third of what is measured or more.
TEST(LeastTrainingBytes, AreBelowWhatIsMeasuredAndNearIt) {
  DiTConfig config = test::static_config();  // 256 tokens: mostly what the backward needs
  config.input_size = 32;
  config.hidden_size = 128;
  config.mlp_hidden = 512;
  for (const bool dynamic : {false, true}) {
    TrainOptions options = tiny_finetune();
    options.dynamic = dynamic;
    options.router.complete_steps = 0;
    options.global_batch = 32;
    const Checkpoint plain = test::random_checkpoint(config);
    const Checkpoint start = dynamic ? add_routers(plain, {}, 5) : plain;
    Batch batch = make_batch(config, 0, 0, 32);
    malloc_trim(0);
    if (!(std::ofstream("/proc/self/clear_refs") << 5).flush()) GTEST_SKIP() << "the peak cannot be reset";
    const double before = status("VmRSS");
    DiT model = make_model(start);
    model->train();
    ParameterStore store(model, 1);
    Communicator alone;
    gradient_of(model, store, options, alone, 0, batch);
    const double measured = status("VmHWM") - before, least = least_training_bytes(start.config, options, 1);
    EXPECT_LE(least, measured);
    EXPECT_GE(least, measured / 3);
  }
}

TEST(LeastTrainingBytes, AreThoseOfAMicroBatchOfOneProcess) {
  TrainOptions options = tiny_finetune();
  const auto bytes = [&](int batch, int processes, int accumulate) {
    options.global_batch = batch;
    options.accumulate = accumulate;
    return least_training_bytes(test::tiny_config(), options, processes);
  };
  EXPECT_EQ(bytes(64, 1, 1), bytes(256, 2, 2));
  EXPECT_LT(bytes(64, 1, 2), bytes(64, 1, 1));
  EXPECT_GT(bytes(1 << 30, 1, 1), 1e12);
}

}  // namespace
}  // namespace dydit
