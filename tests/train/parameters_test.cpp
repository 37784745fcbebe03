// The flat buffers: views of the model, AdamW and EMA against the formulas in double.
#include "dydit/train/parameters.h"

#include <cmath>

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "tests/support/random_model.h"

namespace dydit {
namespace {

bool is_router(const std::string& name) {
  return name.find("rate.router") != std::string::npos || name.find("token_selection") != std::string::npos;
}

// Adam as in Kingma & Ba with the decay of Loshchilov & Hutter, one parameter, in double.
struct DoubleAdamW {
  double w, m = 0, v = 0;

  void step(double g, double lr, double weight_decay, int n) {
    w -= lr * weight_decay * w;
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    const double m_hat = m / (1 - std::pow(0.9, n)), v_hat = v / (1 - std::pow(0.999, n));
    w -= lr * m_hat / (std::sqrt(v_hat) + 1e-8);
  }
};

// Gradients of step n: normals of very different sizes.
at::Tensor gradients(int64_t size, int n) {
  return test::random_tensor({size}, /*seed=*/21, n) *
         at::exp(test::random_tensor({size}, /*seed=*/22, 0, 2));
}

// Five steps by the store and by DoubleAdamW; the largest |difference| over the size of a step.
double adamw_difference(double router_lr_scale) {
  const double lr = 1e-2, weight_decay = 0.1;
  DiT model = test::random_model(test::tiny_config());
  const auto parameters = model->named_parameters();
  ParameterStore store(model, router_lr_scale);
  std::vector<DoubleAdamW> reference(store.values.numel());
  for (int64_t i = 0; i < store.values.numel(); ++i) reference[i].w = store.values.data_ptr<float>()[i];
  std::vector<double> scales;
  for (const auto& parameter : parameters) {
    if (!parameter.value().requires_grad()) continue;
    scales.insert(scales.end(), parameter.value().numel(),
                  is_router(parameter.key()) ? router_lr_scale : 1.0);
  }
  EXPECT_EQ(scales.size(), reference.size());
  for (int n = 1; n <= 5; ++n) {
    store.grads.copy_(gradients(store.grads.numel(), n));
    store.adamw_step({.lr = lr, .weight_decay = weight_decay}, n);
    for (size_t i = 0; i < reference.size(); ++i) {
      reference[i].step(store.grads.data_ptr<float>()[i], lr * scales[i], weight_decay, n);
    }
  }
  double worst = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    worst = std::max(worst, std::abs(store.values.data_ptr<float>()[i] - reference[i].w) / lr);
  }
  return worst;
}

TEST(AdamW, EqualsADoubleReferenceOverFiveSteps) { EXPECT_LT(adamw_difference(1), 1e-3); }

TEST(AdamW, RouterLrScaleIsAFactorOnTheRoutersRateAlone) { EXPECT_LT(adamw_difference(3), 1e-3); }

TEST(AdamW, RoutersRestAtScaleZero) {
  DiT model = test::random_model(test::tiny_config());
  ParameterStore store(model, /*router_lr_scale=*/0);
  std::map<std::string, at::Tensor> before;
  for (const auto& parameter : model->named_parameters())
    before[parameter.key()] = parameter.value().detach().clone();
  store.grads.fill_(1);
  store.adamw_step({.lr = 1e-2, .weight_decay = 0.1}, 1);
  int routers = 0;
  for (const auto& parameter : model->named_parameters()) {
    if (parameter.key() == "pos_embed") continue;
    EXPECT_EQ(at::equal(before.at(parameter.key()), parameter.value()), is_router(parameter.key()))
        << parameter.key();
    routers += is_router(parameter.key());
  }
  EXPECT_EQ(routers, 2 * (2 + 2 + 4));
}

TEST(ParameterStore, ModelKeepsItsWeightsAndSeesTheBuffer) {
  DiT model = test::random_model(test::tiny_config());
  const at::Tensor wanted = model->blocks[1]->fc1->weight.detach().clone();
  ParameterStore store(model, 1);
  EXPECT_TRUE(at::equal(model->blocks[1]->fc1->weight, wanted));
  store.values.fill_(0.25f);
  EXPECT_TRUE((model->blocks[1]->fc1->weight == 0.25).all().item<bool>());
  EXPECT_FALSE((model->pos_embed == 0.25).any().item<bool>());
}

TEST(ParameterStore, BackwardFillsTheGradientBufferAndAddsToIt) {
  DiT model = test::random_model(test::tiny_config());
  ParameterStore store(model, 1);
  store.grads.fill_(7);
  for (const double factor : {1.0, 2.0}) {
    store.grads.zero_();
    for (int n = 0; n < static_cast<int>(factor); ++n) (model->final_linear->bias * 3).sum().backward();
    const auto size = static_cast<double>(model->final_linear->bias.numel());
    EXPECT_NEAR(store.grads.sum().item<double>(), 3 * factor * size, 1e-4);
    EXPECT_NEAR(store.grad_norm(), 3 * factor * std::sqrt(size), 1e-9);
  }
}

TEST(ParameterStore, GradNormIsTheL2NormOverAllParameters) {
  DiT model = test::random_model(test::tiny_config());
  ParameterStore store(model, 1);
  store.grads.copy_(gradients(store.grads.numel(), 1));
  ASSERT_GT(store.grads.numel(), 2 << 16);  // several blocks of the sum
  const double wanted = store.grads.to(at::kDouble).norm().item<double>();
  EXPECT_NEAR(store.grad_norm(), wanted, 1e-9 * wanted);
  store.grads.mul_(0.5);
  EXPECT_NEAR(store.grad_norm(), 0.5 * wanted, 1e-9 * wanted);
  store.grads[store.grads.numel() - 1] = NAN;
  EXPECT_TRUE(std::isnan(store.grad_norm()));
}

TEST(ParameterStore, GradNormDoesNotDependOnThreads) {
  DiT model = test::random_model(test::tiny_config());
  ParameterStore store(model, 1);
  store.grads.copy_(gradients(store.grads.numel(), 1));
  const int threads = at::get_num_threads();
  std::vector<double> norms;
  for (const int n : {1, 2, 3}) {
    at::set_num_threads(n);
    norms.push_back(store.grad_norm());
  }
  at::set_num_threads(threads);
  EXPECT_EQ(norms[0], norms[1]);
  EXPECT_EQ(norms[0], norms[2]);
}

TEST(Ema, StartsAsACopyAndFollows) {
  DiT model = test::random_model(test::tiny_config());
  ParameterStore store(model, 1);
  EXPECT_TRUE(at::equal(store.ema, store.values));
  const at::Tensor start = store.ema.to(at::kDouble);
  at::Tensor wanted = start;
  for (int n = 1; n <= 5; ++n) {
    store.values.add_(0.5f);
    store.ema_step(0.9);
    wanted = 0.9 * wanted + 0.1 * store.values.to(at::kDouble);
  }
  EXPECT_LT((store.ema.to(at::kDouble) - wanted).abs().max().item<double>(), 5e-6);
  EXPECT_GT((wanted - start).abs().min().item<double>(), 0.4);
}

TEST(Ema, WeightsAreTheAverageByNameWithThePositions) {
  const DiTConfig config = test::tiny_config();
  DiT model = test::random_model(config);
  ParameterStore store(model, 1);
  store.values.add_(1);
  store.ema_step(0);
  const Weights weights = store.ema_weights();
  EXPECT_EQ(weights.size(), model->named_parameters().size());
  for (const auto& parameter : model->named_parameters()) {
    const at::Tensor& average = weights.at(parameter.key());
    EXPECT_TRUE(at::allclose(average, parameter.value())) << parameter.key();
    EXPECT_NE(average.data_ptr(), parameter.value().data_ptr()) << parameter.key();
  }
}

// A view, so that neither an average's step nor what a resumed run loads leaves it behind.
TEST(AverageView, IsTheAverageAsAModelAndFollowsIt) {
  DiT model = test::random_model(test::tiny_config());
  model->register_module("hooks", std::make_shared<torch::nn::Module>())
      ->register_parameter("weight", at::ones({3}));
  ParameterStore store(model, 1);
  DiT average = store.average_view(model);
  EXPECT_FALSE(average->is_training());
  const auto expect_equal = [&] {
    const Weights wanted = store.ema_weights();
    EXPECT_EQ(average->named_parameters().size(), wanted.size());
    for (const auto& parameter : average->named_parameters()) {
      EXPECT_TRUE(at::equal(parameter.value(), wanted.at(parameter.key()))) << parameter.key();
      EXPECT_FALSE(parameter.value().requires_grad()) << parameter.key();
    }
  };
  expect_equal();
  const at::Tensor before = average->blocks[1]->fc1->weight.clone();
  store.values.add_(1);
  store.ema_step(0.5);
  expect_equal();
  EXPECT_TRUE(at::allclose(average->blocks[1]->fc1->weight, before + 0.5, 1e-5, 1e-6));
  EXPECT_TRUE(at::allclose(model->blocks[1]->fc1->weight, before + 1, 1e-5, 1e-6));
  store.ema.copy_(gradients(store.ema.numel(), 3));  // as a state is loaded
  expect_equal();
}

}  // namespace
}  // namespace dydit
