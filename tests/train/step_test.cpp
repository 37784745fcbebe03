// One step's gradient: against a plain autograd of the whole loss, and the same however the global batch is
// cut over processes and micro-batches.
#include "dydit/train/step.h"

#include <barrier>
#include <cmath>
#include <thread>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "dydit/base/noise.h"
#include "dydit/diffusion/losses.h"
#include "dydit/model/init.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

constexpr int kBatch = 64, kSteps = 10;

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
TrainOptions tiny_finetune() {
  TrainOptions options;
  options.dynamic = true;
  options.router = {.lambda = 0.5, .anneal_start = 0, .anneal_steps = 1, .complete_steps = 5};
  options.global_batch = kBatch;
  options.lr = 1e-4;
  options.seed = 3;
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

// A run of ten steps, or a process of one.
struct Trace {
  std::vector<StepTerms> terms;
  std::vector<double> norms;
  at::Tensor first_gradient;
  std::map<std::string, at::Tensor> first_router_gradients;
};

Trace run_share(const TrainOptions& options, Communicator& processes) {
  DiT model = make_model(tiny_start());
  model->train();
  ParameterStore store(model, options.router_lr_scale);
  const int share = kBatch / processes.size(), first = processes.rank() * share;
  Trace trace;
  for (int step = 0; step < kSteps; ++step) {
    Batch batch = make_batch(model->config, step, first, share);
    trace.terms.push_back(compute_gradient(model, store, options, processes, step, first, batch));
    trace.norms.push_back(store.grad_norm());
    if (step == 0) {
      trace.first_gradient = store.grads.clone();
      for (const auto& parameter : model->named_parameters()) {
        if (parameter.key().find("rate.router") == std::string::npos &&
            parameter.key().find("token_selection") == std::string::npos) {
          continue;
        }
        trace.first_router_gradients[parameter.key()] = parameter.value().grad().clone();
      }
    }
    store.adamw_step({.lr = options.lr}, step + 1);
  }
  return trace;
}

const Trace& single() {
  static const Trace trace = [] {
    Communicator alone;
    return run_share(tiny_finetune(), alone);
  }();
  return trace;
}

// Each within 1e-4 of its size (terms below one: absolutely).
void expect_near(double got, double wanted, const std::string& what) {
  EXPECT_NEAR(got, wanted, 1e-4 * std::max(1.0, std::abs(wanted))) << what;
}

void expect_agreement(const Trace& trace) {
  for (int step = 0; step < kSteps; ++step) {
    const StepTerms &got = trace.terms[step], &wanted = single().terms[step];
    const auto check = [&](double value, double reference, const char* what) {
      expect_near(value, reference, fmt::format("{} of step {}", what, step));
    };
    check(got.mse, wanted.mse, "mse");
    check(got.vb, wanted.vb, "vb");
    check(got.complete_mse, wanted.complete_mse, "complete mse");
    check(got.complete_vb, wanted.complete_vb, "complete vb");
    check(got.ratio, wanted.ratio, "ratio");
    check(got.inference_ratio, wanted.inference_ratio, "inference ratio");
    check(got.flops_loss, wanted.flops_loss, "flops loss");
    check(trace.norms[step], single().norms[step], "gradient norm");
    for (int q = 0; q < kQuarters; ++q) {
      check(got.heads[q], wanted.heads[q], "heads");
      check(got.groups[q], wanted.groups[q], "groups");
      check(got.tokens[q], wanted.tokens[q], "tokens");
    }
  }
  EXPECT_LT(test::relative_difference(trace.first_gradient, single().first_gradient), 1e-4);
  // A ratio squared before it is averaged over the global batch shows here first.
  ASSERT_EQ(trace.first_router_gradients.size(), 2u * (2 + 2 + 4));
  for (const auto& [name, gradient] : trace.first_router_gradients) {
    EXPECT_LT(test::relative_difference(gradient, single().first_router_gradients.at(name)), 1e-4) << name;
  }
}

TEST(ComputeGradient, TheTinyFinetuneTestsSomething) {
  for (int step = 0; step < kSteps; ++step) {
    const StepTerms& terms = single().terms[step];
    EXPECT_GT(terms.ratio, 0.05);
    EXPECT_LT(terms.ratio, 0.9);
    EXPECT_NE(terms.ratio, terms.inference_ratio);
    EXPECT_GT(terms.flops_loss, 0);
    EXPECT_EQ(terms.complete_mse > 0, step < 5);
    EXPECT_EQ(terms.complete_vb > 0, step < 5);
    EXPECT_GT(single().norms[step], 1e-3);
  }
  EXPECT_NE(single().terms[0].mse, single().terms[0].complete_mse);
}

TEST(ComputeGradient, AccumulationAgreesWithOneBatch) {
  TrainOptions options = tiny_finetune();
  options.accumulate = 2;
  Communicator alone;
  expect_agreement(run_share(options, alone));
}

TEST(ComputeGradient, TwoProcessesAgreeWithOne) {
  TwoThreads both;
  std::array<Trace, 2> traces;
  const auto work = [&](int rank) {
    TwoThreads::Rank processes(both, rank);
    traces[rank] = run_share(tiny_finetune(), processes);
  };
  std::thread other(work, 1);
  work(0);
  other.join();
  expect_agreement(traces[0]);
  EXPECT_TRUE(at::equal(traces[0].first_gradient, traces[1].first_gradient));
  EXPECT_EQ(traces[0].norms, traces[1].norms);
}

// The loss written as method.md has it, differentiated in one piece; each gradient within 1e-4 of its norm.
void expect_plain_autograd(const TrainOptions& options, uint64_t step) {
  DiT model = make_model(tiny_start());
  ParameterStore store(model, 1);
  Communicator alone;
  Batch batch = make_batch(model->config, step, 0, kBatch);
  const StepTerms terms = compute_gradient(model, store, options, alone, step, 0, batch);

  DiT plain = make_model(tiny_start());
  plain->train();
  const DiTConfig& config = plain->config;
  const at::Tensor images =
      at::from_blob(batch.images.data(), {kBatch, config.in_channels, config.input_size, config.input_size});
  const StepInputs in = make_step_inputs(config, options, step, 0, images, at::tensor(batch.labels));
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
  const StepTerms terms = compute_gradient(model, store, options, alone, 0, 0, batch);
  EXPECT_EQ(terms.ratio, 1);
  EXPECT_EQ(terms.inference_ratio, 1);
  EXPECT_EQ(terms.flops_loss, 0);
  EXPECT_EQ(terms.complete_mse, 0);
  for (int q = 0; q < kQuarters; ++q) EXPECT_EQ(terms.heads[q], 1);
  EXPECT_GT(terms.mse, 0);
  EXPECT_GT(store.grad_norm(), 0);
}

StepInputs inputs_of(const TrainOptions& options, uint64_t step, int first, int count) {
  const DiTConfig config = test::tiny_config();
  Batch batch = make_batch(config, step, first, count);
  const at::Tensor images = at::from_blob(batch.images.data(), {count, 4, 8, 8}).clone();
  return make_step_inputs(config, options, step, first, images, at::tensor(batch.labels));
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

}  // namespace
}  // namespace dydit
