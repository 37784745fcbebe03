// How training draws its timesteps (SpeeD), and what each then counts for.
#include <ATen/ATen.h>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/diffusion/losses.h"
#include "dydit/diffusion/timestep_draw.h"
#include "dydit/io/text.h"
#include "dydit/train/step.h"
#include "verify.h"

namespace dydit {
namespace {

constexpr double kExactTolerance = 1e-12;   // of tables in double
constexpr double kRoundedTolerance = 1e-6;  // of those that were kept in float32 on the way

double stated(const Reference& reference, const char* key) {
  const std::string text = reference.metadata(key);
  const auto value = parse_number<double>(text);
  DYDIT_CHECK(value, "{}: metadata '{}' is {}, expected a number", reference.path(), key, quote(text));
  return *value;
}

template <typename T>
at::Tensor tensor_of(const std::vector<T>& values) {
  return at::tensor(values, at::kDouble);
}

void compare_whole(const std::string& name, const at::Tensor& got, const at::Tensor& want,
                   VerifyReport& report) {
  report.count(name, (got.to(at::kLong) != want.to(at::kLong)).sum().item<int64_t>(), want.numel());
}

// t (n) of the table -> fn(t), in double.
template <typename Fn>
at::Tensor of_timesteps(const std::vector<int>& t, const Fn& fn) {
  std::vector<double> values;
  for (const int timestep : t) values.push_back(fn(timestep));
  return tensor_of(values);
}

}  // namespace

void verify_timesteps(const Reference& reference, int /*threads*/, VerifyReport& report) {
  const TimestepOptions options = {.draw = TimestepDraw::Speed,
                                   .k = stated(reference, "k"),
                                   .lambda = stated(reference, "lam"),
                                   .tau = static_cast<int>(stated(reference, "tau"))};
  const SpeedTable table = speed_table(options);
  const TimestepSampler sampler(options, Objective());
  report.compare("p", tensor_of(table.p), reference.at("p"), kRoundedTolerance);
  report.compare("p_exact", tensor_of(table.p), reference.at("p_exact"), kExactTolerance);
  report.compare("weights", tensor_of(table.loss_weight), reference.at("weights"), kRoundedTolerance);
  report.compare("weights_exact", tensor_of(table.loss_weight), reference.at("weights_exact"),
                 kExactTolerance);
  report.compare("marginal", tensor_of(table.marginal), reference.at("marginal"), kExactTolerance);
  compare_whole("mirror", tensor_of(table.mirror), reference.at("mirror"), report);
  compare_whole("mirror_at", at::tensor({int64_t{table.mirror[0]}}), reference.at("mirror_at"), report);
  std::vector<int> all(kNumTrainTimesteps);
  for (int t = 0; t < kNumTrainTimesteps; ++t) all[t] = t;
  report.compare("ratio_weight", of_timesteps(all, [&](int t) { return sampler.visits(t); }),
                 reference.at("ratio_weight"), kExactTolerance);

  const auto mirror = [&](int t) { return table.mirror[t]; };
  for (const std::string batch : {"batch15", "batch16"}) {  // the authors': draws, then their mirrors, cut
    const std::vector<int> drawn = checked_timesteps(reference, batch + "_drawn");
    const at::Tensor want = reference.at(batch + "_t");
    const at::Tensor got = at::cat({tensor_of(drawn), of_timesteps(drawn, mirror)}).slice(0, 0, want.numel());
    compare_whole(batch, got, want, report);
  }
  const at::Tensor u = reference.at("pair_u").to(at::kDouble).contiguous();
  std::vector<int> even;
  for (int64_t i = 0; i < u.numel(); ++i) even.push_back(speed_timestep(options, u.data_ptr<double>()[i]));
  compare_whole("pair_t_even", tensor_of(even), reference.at("pair_t_even"), report);
  compare_whole("pair_t_odd", of_timesteps(even, mirror), reference.at("pair_t_odd"), report);

  const at::Tensor x0 = reference.at("loss_x0"), noise = reference.at("loss_noise"),
                   t = reference.at("loss_t").to(at::kLong);
  const DiffusionLoss loss =
      diffusion_loss(reference.at("loss_output"), x0, q_sample(x0, t, noise), t, noise);
  const at::Tensor weights = of_timesteps(checked_timesteps(reference, "loss_t"),
                                          [&](int step) { return sampler.loss_weight(step); });
  report.compare("loss_mse", loss.mse * weights, reference.at("loss_mse"), kForwardTolerance);
  report.compare("loss_vb", loss.vb, reference.at("loss_vb"), kForwardTolerance);

  constexpr double kTarget = 0.5;
  const at::Tensor visits =
      of_timesteps(checked_timesteps(reference, "flops_t"), [&](int step) { return sampler.visits(step); });
  const at::Tensor mean = (visits * reference.at("flops_ratio_b").to(at::kDouble)).mean();
  const FlopsTerm term = flops_term(mean.item<double>(), kTarget);
  report.compare("flops_mean", mean.view({1}), reference.at("flops_mean"), kExactTolerance);
  report.compare("flops_loss", at::tensor({term.loss}, at::kDouble), reference.at("flops_loss"),
                 kExactTolerance);
  report.compare("flops_grad", term.slope * visits / visits.numel(), reference.at("flops_grad"),
                 kExactTolerance);
  report.skip("weights_p2", "a form that its authors' code holds beside the published one");
}

}  // namespace dydit
