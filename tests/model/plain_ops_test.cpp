// The plain operators against the kernels: values and gradients in float32, values in bfloat16.
#include "dydit/model/plain_ops.h"

#include <functional>

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "dydit/model/ops.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::random_tensor;
using Tensors = std::vector<at::Tensor>;
using Op = std::function<at::Tensor(const Tensors& inputs)>;

constexpr int64_t B = 3, N = 9, H = 3, C = 36, D = 12, F = 81;  // no multiples of a vector

// The output and the gradient of every input for a random gradient of the output.
Tensors values_and_gradients(const Op& op, const Tensors& inputs) {
  Tensors leaves;
  for (const at::Tensor& input : inputs) leaves.push_back(input.detach().clone().requires_grad_());
  const at::Tensor out = op(leaves);
  out.backward(random_tensor(out.sizes(), /*seed=*/8, 0).to(out.scalar_type()));
  Tensors result = {out.detach()};
  for (const at::Tensor& leaf : leaves) result.push_back(leaf.grad());
  return result;
}

void expect_same(const Op& kernel, const Op& plain, const std::vector<std::vector<int64_t>>& shapes) {
  Tensors inputs;
  for (const auto& shape : shapes) inputs.push_back(random_tensor(shape, /*seed=*/7, inputs.size()));
  const Tensors wanted = values_and_gradients(kernel, inputs), got = values_and_gradients(plain, inputs);
  for (size_t i = 0; i < wanted.size(); ++i)
    EXPECT_LT(test::relative_difference(got[i], wanted[i]), 1e-5) << (i ? "gradient " : "value ") << i;
}

TEST(PlainOps, LayerNormModulate) {
  expect_same(
      [](const Tensors& in) { return layer_norm_modulate(in[0], in[1], in[2], at::kFloat, 1e-3); },
      [](const Tensors& in) { return plain::layer_norm_modulate(in[0], in[1], in[2], at::kFloat, 1e-3); },
      {{B, N, C}, {B, C}, {B, C}});
}

TEST(PlainOps, GatedResidual) {
  expect_same([](const Tensors& in) { return gated_residual(in[0], in[1], in[2]); },
              [](const Tensors& in) { return plain::gated_residual(in[0], in[1], in[2]); },
              {{B, N, C}, {B, C}, {B, N, C}});
}

TEST(PlainOps, GatedResidualOfTokens) {
  expect_same([](const Tensors& in) { return gated_residual(in[0], in[1], in[2], in[3]); },
              [](const Tensors& in) { return plain::gated_residual(in[0], in[1], in[2], in[3]); },
              {{B, N, C}, {B, C}, {B, N, C}, {B, N}});
}

// As around the branches of a U-ViT.
TEST(PlainOps, GatedResidualWithoutAGate) {
  expect_same([](const Tensors& in) { return gated_residual(in[0], {}, in[1]); },
              [](const Tensors& in) { return plain::gated_residual(in[0], {}, in[1]); },
              {{B, N, C}, {B, N, C}});
  expect_same([](const Tensors& in) { return gated_residual(in[0], {}, in[1], in[2]); },
              [](const Tensors& in) { return plain::gated_residual(in[0], {}, in[1], in[2]); },
              {{B, N, C}, {B, N, C}, {B, N}});
}

TEST(PlainOps, ATokenThatIsOffKeepsXExactly) {
  const at::Tensor x = random_tensor({B, N, C}, 1, 0), y = random_tensor({B, N, C}, 1, 1);
  const at::Tensor out = plain::gated_residual(x, random_tensor({B, C}, 1, 2), y, at::zeros({B, N}));
  EXPECT_TRUE(at::equal(out, x));
}

TEST(PlainOps, GatedGelu) {
  expect_same([](const Tensors& in) { return gated_gelu(in[0]); },
              [](const Tensors& in) { return plain::gated_gelu(in[0]); }, {{B, N, F}});
  expect_same([](const Tensors& in) { return gated_gelu(in[0], in[1]); },
              [](const Tensors& in) { return plain::gated_gelu(in[0], in[1]); }, {{B, N, F}, {B, H}});
}

TEST(PlainOps, GatedGeluOfTheExactForm) {
  expect_same([](const Tensors& in) { return gated_gelu(in[0], {}, GeluForm::Erf); },
              [](const Tensors& in) { return plain::gated_gelu(in[0], {}, GeluForm::Erf); }, {{B, N, F}});
  expect_same([](const Tensors& in) { return gated_gelu(in[0], in[1], GeluForm::Erf); },
              [](const Tensors& in) { return plain::gated_gelu(in[0], in[1], GeluForm::Erf); },
              {{B, N, F}, {B, H}});
}

TEST(PlainOps, Attention) {
  expect_same([](const Tensors& in) { return attention(in[0], in[1], in[2]); },
              [](const Tensors& in) { return plain::attention(in[0], in[1], in[2]); },
              {{B, H, N, D}, {B, H, N, D}, {B, H, N, D}});
}

// bfloat16 has 8 bits: one unit in the last place is 2^-8 of the value.
TEST(PlainOps, BFloat16RoundsOnceAtTheEnd) {
  at::NoGradGuard no_grad;
  const at::Tensor x = random_tensor({B, N, C}, 2, 0), shift = random_tensor({B, C}, 2, 1);
  const at::Tensor h = random_tensor({B, N, F}, 2, 2).to(at::kBFloat16), gate = random_tensor({B, H}, 2, 3);
  const at::Tensor y = x.to(at::kBFloat16);
  const std::vector<std::pair<at::Tensor, at::Tensor>> pairs = {
      {layer_norm_modulate(x, shift, shift, at::kBFloat16, 1e-3),
       plain::layer_norm_modulate(x, shift, shift, at::kBFloat16, 1e-3)},
      {gated_residual(x, shift, y), plain::gated_residual(x, shift, y)},
      {gated_gelu(h), plain::gated_gelu(h)},
      {gated_gelu(h, gate), plain::gated_gelu(h, gate)}};
  for (const auto& [wanted, got] : pairs) {
    EXPECT_EQ(got.scalar_type(), wanted.scalar_type());
    EXPECT_TRUE(at::allclose(got.to(at::kFloat), wanted.to(at::kFloat), 0x1p-7, 1e-6));
  }
}

}  // namespace
}  // namespace dydit
