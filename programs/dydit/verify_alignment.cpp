// Losses on features (U-REPA, SRA, dispersive, PLR) of recorded features, and their gradients.
#include <algorithm>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/torch.h>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/io/text.h"
#include "dydit/train/hooks.h"
#include "verify.h"

namespace dydit {
namespace {

at::Tensor leaf(const at::Tensor& tensor) { return tensor.clone().set_requires_grad(true); }

void compare_gradient(const std::string& name, const at::Tensor& got, const Reference& reference,
                      VerifyReport& report) {
  const at::Tensor& want = reference.at(name);
  DYDIT_CHECK(got.sizes() == want.sizes(), "{}: {} does not fit what it is the gradient of", reference.path(),
              name);
  report.error(name, (got - want).norm().item<double>() / std::max(want.norm().item<double>(), 1e-300),
               kTrainingTolerance);
}

// A head whose layers are named as the recorded ones, the gradient of which is wanted.
HookHead recorded_head(HookHeadImpl::Kind kind, const std::string& prefix, const Reference& reference) {
  const bool self = kind == HookHeadImpl::Kind::Self;
  const at::Tensor &first = reference.at(prefix + (self ? "linear1" : "0") + ".weight"),
                   &second = reference.at(prefix + (self ? "linear2" : "2") + ".weight");
  HookHead head(kind, static_cast<int>(first.size(1)), static_cast<int>(first.size(0)),
                static_cast<int>(second.size(0)));
  const at::NoGradGuard no_grad;
  for (auto& parameter : head->named_parameters()) {
    const at::Tensor& want = reference.at(prefix + parameter.key());
    DYDIT_CHECK(parameter.value().sizes() == want.sizes(), "{}: {} does not fit its head", reference.path(),
                prefix + parameter.key());
    parameter.value().copy_(want);
  }
  return head;
}

// fn(z) against the tensor of that name, and its gradient by z.
template <typename Fn>
void verify_loss(const std::string& name, const Reference& reference, const Fn& fn, VerifyReport& report) {
  const at::Tensor z = leaf(reference.at("z")), loss = fn(z).mean();
  loss.backward();
  report.compare(name, loss.detach().view({1}), reference.at(name), kForwardTolerance);
  compare_gradient("grad." + name, z.grad(), reference, report);
}

void verify_self(const Reference& reference, VerifyReport& report) {
  HookHead head = recorded_head(HookHeadImpl::Kind::Self, "head.", reference);
  const at::Tensor student = leaf(reference.at("sra_student"));
  const at::Tensor predicted = head->forward(student, at::kFloat);
  const at::Tensor loss = self_loss(predicted, reference.at("sra_teacher")).mean();
  loss.backward();
  report.compare("sra_head_out", predicted.detach(), reference.at("sra_head_out"), kForwardTolerance);
  report.compare("sra", loss.detach().view({1}), reference.at("sra"), kForwardTolerance);
  compare_gradient("grad.sra_student", student.grad(), reference, report);
  for (const auto& parameter : head->named_parameters())
    compare_gradient("grad.head." + parameter.key(), parameter.value().grad(), reference, report);

  const std::vector<int> t = checked_timesteps(reference, "sra_t"),
                         lags = checked_timesteps(reference, "sra_interval");
  std::vector<double> times;
  for (size_t i = 0; i < std::min(t.size(), lags.size()); ++i)
    times.push_back(teacher_time(Objective(), t[i], lags[i]));
  report.compare("sra_t_teacher", at::tensor(times, at::kDouble), reference.at("sra_t_teacher"), /*limit=*/0);
}

void verify_per_layer(const Reference& reference, VerifyReport& report) {
  const std::string text = reference.metadata("patch");
  const at::Tensor& noise = reference.at("plr_noise");
  const auto patch = parse_number<int>(text);
  DYDIT_CHECK(patch && *patch > 0 && noise.dim() == 4 && noise.size(2) == noise.size(3) &&
                  noise.size(2) % *patch == 0,
              "{}: metadata 'patch' is {}, expected the side of patches that tile plr_noise",
              reference.path(), quote(text));
  const at::Tensor target = to_patches(noise, *patch);
  report.compare("plr_target", target, reference.at("plr_target"), /*limit=*/0);
  at::Tensor sum;
  std::vector<at::Tensor> features;
  const auto name_of = [](size_t l) { return fmt::format("plr.{}.features", l); };
  do {
    const size_t l = features.size();
    HookHead head = recorded_head(HookHeadImpl::Kind::Layer, fmt::format("plr.{}.", l), reference);
    features.push_back(leaf(reference.at(name_of(l))));
    const at::Tensor loss = layer_loss(head->forward(features.back(), at::kFloat), target);
    const std::string name = fmt::format("plr.{}.loss", l);
    report.compare(name, loss.detach(), reference.at(name), kForwardTolerance);
    sum = sum.defined() ? sum + loss : loss;
  } while (reference.has(name_of(features.size())));
  const at::Tensor loss = (sum / static_cast<double>(features.size())).mean();
  loss.backward();
  report.compare("plr", loss.detach().view({1}), reference.at("plr"), kForwardTolerance);
  for (size_t l = 0; l < features.size(); ++l)
    compare_gradient("grad." + name_of(l), features[l].grad(), reference, report);
}

}  // namespace

void verify_alignment(const Reference& reference, int /*threads*/, VerifyReport& report) {
  const at::Tensor& y = reference.at("y");
  const HookOptions options{.align = Align::Encoder};
  verify_loss(
      "cosine", reference, [&](const at::Tensor& z) { return cosine_loss(z, y); }, report);
  verify_loss(
      "manifold_intra", reference, [&](const at::Tensor& z) { return manifold_intra(z, y); }, report);
  verify_loss(
      "manifold_inter", reference, [&](const at::Tensor& z) { return manifold_inter(z, y); }, report);
  verify_loss(
      "urepa", reference, [&](const at::Tensor& z) { return encoder_loss(z, y, options); }, report);
  for (const double tau : {1.0, 0.5})
    verify_loss(
        fmt::format("dispersive_tau{:.1f}", tau), reference,
        [&](const at::Tensor& z) { return dispersive_loss(z, tau); }, report);
  verify_self(reference, report);
  verify_per_layer(reference, report);
}

}  // namespace dydit
