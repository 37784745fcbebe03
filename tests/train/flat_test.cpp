// The loops of the CPU against the operators that other devices use.
#include "dydit/train/flat.h"

#include <cmath>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/random_model.h"

namespace dydit::flat {
namespace {

using test::random_tensor;

constexpr int64_t kSize = (2 << 16) + 7;  // several blocks and a rest

TEST(Flat, NormsAgree) {
  const at::Tensor x = random_tensor({kSize}, 1, 0);
  EXPECT_NEAR(plain::l2_norm(x), l2_norm(x), 1e-9 * l2_norm(x));
  x[kSize - 1] = NAN;
  EXPECT_TRUE(std::isnan(l2_norm(x)));
  EXPECT_TRUE(std::isnan(plain::l2_norm(x)));
}

TEST(Flat, AveragesAgree) {
  const at::Tensor w = random_tensor({kSize}, 1, 0), a = random_tensor({kSize}, 1, 1), b = a.clone();
  move_average(a, w, 0.9);
  plain::move_average(b, w, 0.9);
  EXPECT_LT((a - b).abs().max().item<double>(), 1e-6);
}

// Weights that jump about a mean, as they do late in training, over four times the average's memory of 10,000
// steps. With factors that do not add up to 1 the average would come out 1e-4 too small.
TEST(Flat, AverageOfManyStepsIsExact) {
  constexpr int64_t kFew = 512;
  constexpr double kDecay = 0.9999;
  std::vector<at::Tensor> weights;
  for (int i = 0; i < 64; ++i) weights.push_back(1 + 0.1 * random_tensor({kFew}, 3, i));
  const at::Tensor loops = weights[0].clone(), operators = weights[0].clone(),
                   exact = weights[0].to(at::kDouble);
  for (int step = 0; step < 40000; ++step) {
    const at::Tensor& w = weights[step % weights.size()];
    move_average(loops, w, kDecay);
    plain::move_average(operators, w, kDecay);
    exact.mul_(kDecay).add_(w, 1 - kDecay);
  }
  for (const at::Tensor& average : {loops, operators}) {
    const double error = ((average.to(at::kDouble) - exact).mean() / exact.mean()).item<double>();
    EXPECT_LT(std::abs(error), 2e-6);
  }
  EXPECT_LT((loops - operators).abs().max().item<double>(), 2e-5);
}

TEST(Flat, AdamWStepsAgree) {
  struct Buffers {
    at::Tensor w = random_tensor({kSize}, 1, 0), m = at::zeros({kSize}), v = at::zeros({kSize});
  } loops, operators;
  for (int n = 1; n <= 5; ++n) {
    const at::Tensor g = random_tensor({kSize}, 2, n);
    const AdamWFactors factors = {.beta1 = 0.9f,
                                  .beta2 = 0.999f,
                                  .eps = 1e-8f,
                                  .decay = 0.999f,
                                  .step_size = 1e-2f / static_cast<float>(1 - std::pow(0.9, n)),
                                  .root_correction2 = static_cast<float>(std::sqrt(1 - std::pow(0.999, n)))};
    adamw(loops.w, g, loops.m, loops.v, factors);
    plain::adamw(operators.w, g, operators.m, operators.v, factors);
  }
  EXPECT_LT((loops.w - operators.w).abs().max().item<double>(), 1e-5);
  EXPECT_LT((loops.m - operators.m).abs().max().item<double>(), 1e-6);
  EXPECT_LT((loops.v - operators.v).abs().max().item<double>(), 1e-6);
}

}  // namespace
}  // namespace dydit::flat
