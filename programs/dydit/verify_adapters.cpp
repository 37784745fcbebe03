// Low-rank updates of one linear: mixed, merged, masked and plain, and the gradients of a loss.
#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/model/adapters.h"
#include "dydit/model/dit.h"
#include "verify.h"

namespace dydit {
namespace {

// The linear of these vectors with matrices of theirs.
Linear linear_with(const Reference& reference, const AdapterConfig& adapter, const at::Tensor& A,
                   const at::Tensor& B) {
  at::NoGradGuard no_grad;
  const at::Tensor &weight = reference.at("weight"), &bias = reference.at("bias");
  Linear linear(static_cast<int>(weight.size(1)), static_cast<int>(weight.size(0)));
  linear->add_adapter(adapter);
  const auto set = [&](at::Tensor& parameter, const at::Tensor& value) {
    DYDIT_CHECK(parameter.sizes() == value.sizes(),
                "{}: a matrix of an adapter has shape ({}), expected ({})", reference.path(),
                fmt::join(value.sizes(), ", "), fmt::join(parameter.sizes(), ", "));
    parameter.copy_(value);
  };
  set(linear->weight, weight);
  set(linear->bias, bias);
  set(linear->lora->A, A);
  set(linear->lora->B, B);
  return linear;
}

// As a forward without the side path computes it: y (B, N, out) of weights (B, out, in).
at::Tensor by_weights(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& bias) {
  return at::matmul(x, weights.transpose(1, 2)) + bias;
}

}  // namespace

void verify_adapters(const Reference& reference, int /*threads*/, VerifyReport& report) {
  const at::Tensor &A = reference.at("lora.A"), &B = reference.at("lora.B"), &bias = reference.at("bias");
  DYDIT_CHECK(A.dim() == 3 && B.dim() == 2 && reference.at("weight").dim() == 2 && bias.dim() == 1,
              "{}: lora.A and lora.B are not (experts, rank, inputs) and (outputs, rank)", reference.path());
  AdapterConfig adapter{AdapterKind::TdLora, static_cast<int>(A.size(1)), static_cast<int>(A.size(0))};
  Linear linear = linear_with(reference, adapter, A, B);
  const auto leaf = [&](const char* name) {
    return reference.at(name).to(at::kFloat, /*non_blocking=*/false, /*copy=*/true).requires_grad_();
  };
  const at::Tensor x = leaf("x"), t_emb = leaf("t_emb"), alpha_weight = leaf("lora.alpha.weight"),
                   alpha_bias = leaf("lora.alpha.bias");
  const auto compare = [&](const char* name, const at::Tensor& got, double limit = kForwardTolerance) {
    report.compare(name, got.detach(), reference.at(name), limit);
  };
  // As DiTBlock::expert_shares.
  const at::Tensor shares = at::softmax(at::linear(t_emb, alpha_weight, alpha_bias), 1);
  compare("alpha", shares);
  compare("A_mixed", mixed(A, shares));
  const at::Tensor out = linear->forward(x, at::kFloat, shares);
  compare("out", out);
  const at::Tensor merged =
      reference.at("weight") + low_rank_update(linear->lora->A, linear->lora->B, shares, adapter.scale);
  compare("weight_merged", merged);
  report.compare("out, merged", by_weights(x, merged, bias).detach(), reference.at("out"), kForwardTolerance);

  const at::Tensor loss = (out - reference.at("target")).square().mean();
  compare("loss", loss.view({1}), kTrainingTolerance);
  loss.backward();
  const auto gradient = [&](const char* name, const at::Tensor& of) {
    const at::Tensor& wanted = reference.at(name);
    DYDIT_CHECK(of.grad().sizes() == wanted.sizes(), "{}: {} has shape ({}), expected ({})", reference.path(),
                name, fmt::join(wanted.sizes(), ", "), fmt::join(of.grad().sizes(), ", "));
    report.error(name, ((of.grad() - wanted).norm() / wanted.norm()).item<double>(), kTrainingTolerance);
  };
  gradient("grad.lora.A", linear->lora->A);
  gradient("grad.lora.B", linear->lora->B);
  gradient("grad.lora.alpha.weight", alpha_weight);
  gradient("grad.lora.alpha.bias", alpha_bias);
  gradient("grad.t_emb", t_emb);
  gradient("grad.x", x);

  at::NoGradGuard no_grad;
  const at::Tensor &rows = reference.at("row_mask"), &columns = reference.at("column_mask");
  const auto cut = [&](const at::Tensor& cut_A, const at::Tensor& cut_B) {
    return linear_with(reference, adapter, cut_A, cut_B);
  };
  compare("out_rows", out * rows);  // as a gate behind the layer closes parts
  Linear of_rows = cut(A, B * rows.unsqueeze(1));
  of_rows->weight.mul_(rows.unsqueeze(1));
  of_rows->bias.mul_(rows);
  report.compare("out_rows, rows of B cut", of_rows->forward(x, at::kFloat, shares), reference.at("out_rows"),
                 kForwardTolerance);
  report.compare("out_rows, merged", by_weights(x, merged * rows.unsqueeze(1), bias * rows),
                 reference.at("out_rows"), kForwardTolerance);
  compare("out_columns", linear->forward(x * columns, at::kFloat, shares));
  Linear of_columns = cut(A * columns, B);
  of_columns->weight.mul_(columns);
  report.compare("out_columns, columns of A cut", of_columns->forward(x, at::kFloat, shares),
                 reference.at("out_columns"), kForwardTolerance);
  report.compare("out_columns, merged", by_weights(x, merged * columns, bias), reference.at("out_columns"),
                 kForwardTolerance);
  compare("out_zero_B", cut(A, at::zeros_like(B))->forward(x, at::kFloat, shares));

  AdapterConfig on_B = adapter;
  on_B.mix = AdapterMix::B;
  compare("mixb.out", linear_with(reference, on_B, reference.at("mixb.A"), reference.at("mixb.B"))
                          ->forward(x, at::kFloat, shares));
  const at::Tensor& plain_A = reference.at("plain.A");
  const AdapterConfig plain{AdapterKind::Lora, static_cast<int>(plain_A.size(0)), 1};
  compare("plain.out",
          linear_with(reference, plain, plain_A.unsqueeze(0), reference.at("plain.B"))->forward(x));
}

}  // namespace dydit
