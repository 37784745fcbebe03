// Consistency distillation as its authors compute it: grid and tables, the two sides of the loss with
// gradients, a run of the sampler with its noise; and which steps T-Stitch gives to the small model.
#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/diffusion/consistency.h"
#include "dydit/diffusion/gaussian.h"
#include "dydit/diffusion/lcm.h"
#include "dydit/diffusion/solver.h"
#include "dydit/pipeline/stitch.h"
#include "verify.h"

namespace dydit {
namespace {

constexpr double kExactTolerance = 1e-12;   // of tables in double
constexpr double kRoundedTolerance = 1e-6;  // of those that are used in float32

void compare_whole(const std::string& name, const std::vector<int>& got, const at::Tensor& want,
                   VerifyReport& report) {
  const at::Tensor made = at::tensor(got, at::kLong);
  DYDIT_CHECK(made.sizes() == want.sizes(), "reference tensor {} holds {} numbers, there are {}", name,
              want.numel(), made.numel());
  report.count(name, (made != want.to(at::kLong)).sum().item<int64_t>(), want.numel());
}

template <typename Fn>
at::Tensor of_each(const std::vector<int>& values, const Fn& fn) {
  std::vector<double> result;
  for (const int value : values) result.push_back(fn(value));
  return at::tensor(result, at::kDouble);
}

void verify_tables(const Reference& reference, VerifyReport& report) {
  std::vector<int> grid = lcm_timesteps(kLcmGrid);
  compare_whole("ddim_timesteps", grid, reference.at("ddim_timesteps"), report);
  for (const char* steps : {"1", "2", "4", "8"}) {
    const std::string name = std::string("sampler_timesteps_") + steps;
    std::vector<int> timesteps = lcm_timesteps(*parse_number<int>(steps));
    std::reverse(timesteps.begin(), timesteps.end());  // as they are taken
    compare_whole(name, timesteps, reference.at(name), report);
  }
  std::vector<int> all(kNumTrainTimesteps);
  for (int t = 0; t < kNumTrainTimesteps; ++t) all[t] = t;
  const std::vector<double> a = make_diffusion_tables(all).alphas_cumprod;
  const auto before = [](int t) { return lcm_previous(at::tensor({int64_t{t}})).item<int64_t>(); };
  report.compare("ddim_alphas_cumprod", of_each(grid, [&](int t) { return a[t]; }),
                 reference.at("ddim_alphas_cumprod"), kExactTolerance);
  report.compare("ddim_alphas_cumprod_prev", of_each(grid, [&](int t) { return a[before(t)]; }),
                 reference.at("ddim_alphas_cumprod_prev"), kExactTolerance);
}

void verify_step(const Reference& reference, VerifyReport& report) {
  std::vector<int> start;
  const at::Tensor index = reference.at("index").to(at::kLong).contiguous();
  for (int64_t i = 0; i < index.numel(); ++i)
    start.push_back(lcm_timestep(static_cast<int>(index.data_ptr<int64_t>()[i])));
  compare_whole("start_timesteps", start, reference.at("start_timesteps"), report);
  const at::Tensor t = at::tensor(start, at::kLong), t_end = lcm_previous(t);
  std::vector<int> end;
  for (int64_t i = 0; i < t_end.numel(); ++i) end.push_back(static_cast<int>(t_end[i].item<int64_t>()));
  compare_whole("timesteps", end, reference.at("timesteps"), report);
  const auto skip = [](int at) { return lcm_boundary(at).skip; };
  const auto out = [](int at) { return lcm_boundary(at).out; };
  report.compare("c_skip_start", of_each(start, skip), reference.at("c_skip_start"), kRoundedTolerance);
  report.compare("c_out_start", of_each(start, out), reference.at("c_out_start"), kRoundedTolerance);
  report.compare("c_skip", of_each(end, skip), reference.at("c_skip"), kRoundedTolerance);
  report.compare("c_out", of_each(end, out), reference.at("c_out"), kRoundedTolerance);

  const at::Tensor x = reference.at("x_start"), w = reference.at("w").view({-1, 1, 1, 1}),
                   eps = reference.at("eps_student");
  report.compare("student_x0", lcm_x0(x, eps, t), reference.at("student_x0"), kForwardTolerance);
  report.compare("student", lcm_consistency(x, eps, t), reference.at("student"), kForwardTolerance);
  const at::Tensor x_end =
      lcm_teacher_step(x, reference.at("eps_teacher_cond"), reference.at("eps_teacher_uncond"), t, w);
  report.compare("x_prev", x_end, reference.at("x_prev"), kForwardTolerance);
  const at::Tensor g = lcm_consistency(x_end, reference.at("eps_target"), t_end);
  report.compare("target", g, reference.at("target"), kForwardTolerance);
  for (const auto& entry : kConsistencyLossNames.entries) {
    const std::string name = "loss_" + std::string(entry.name);
    const at::Tensor student = eps.clone().set_requires_grad(true);
    const at::Tensor loss = consistency_loss(lcm_consistency(x, student, t), g, entry.value).mean();
    loss.backward();
    report.compare(name, loss.detach().view({1}), reference.at(name), kForwardTolerance);
    report.compare("grad." + name, student.grad(), reference.at("grad." + name), kTrainingTolerance);
  }
}

// Its own states all the way: only start and noise are taken from the recording.
void verify_run(const Reference& reference, VerifyReport& report) {
  constexpr int kSteps = 4;
  const SamplerOptions lcm = {.kind = SamplerKind::Lcm};
  const Solver solver = make_solver({}, lcm, choose_timesteps({}, lcm, kSteps).timesteps);
  const std::vector<int> timesteps = lcm_timesteps(kSteps);
  at::Tensor x = reference.at("run_state_0").clone();
  for (int i = 0; i < kSteps; ++i) {
    const std::string number = std::to_string(i);
    const size_t step = static_cast<size_t>(kSteps - 1 - i);
    report.compare("run_state_" + number, x, reference.at("run_state_" + number), kForwardTolerance);
    const at::Tensor eps = 0.9 * at::tanh(x), t = at::full({x.size(0)}, timesteps[step], at::kLong);
    report.compare("run_eps_" + number, eps, reference.at("run_eps_" + number), kForwardTolerance);
    const at::Tensor x0 = lcm_consistency(x, eps, t);
    report.compare("run_x0_" + number, x0, reference.at("run_x0_" + number), kForwardTolerance);
    const at::Tensor noise =
        solver.steps[step].noisy ? reference.at("run_noise_" + number) : at::zeros_like(x);
    const auto values = [](const at::Tensor& tensor) {
      return std::span(tensor.data_ptr<float>(), static_cast<size_t>(tensor.numel()));
    };
    apply_step(solver.steps[step],
               {.x = values(x), .eps = values(eps), .variance = {}, .noise = values(noise)});
  }
  report.compare("run_out", x, reference.at("run_x0_" + std::to_string(kSteps - 1)), kForwardTolerance);
}

void verify_stitch(const Reference& reference, VerifyReport& report) {
  constexpr int kStride = 20;  // of the recorded timesteps
  for (const char* ratio : {"0.2", "0.4", "0.5"}) {
    const std::string name = std::string("stitch_small_") + ratio;
    const at::Tensor want = reference.at(name);
    const Stitch stitch = {.ratio = *parse_number<double>(ratio)};
    std::vector<int> taken;
    for (int64_t i = 0; i < want.numel(); ++i)
      taken.push_back(stitch.takes({}, static_cast<double>(kStride * i)));
    compare_whole(name, taken, want, report);
  }
}

}  // namespace

void verify_few_step(const Reference& reference, int /*threads*/, VerifyReport& report) {
  verify_tables(reference, report);
  verify_step(reference, report);
  verify_run(reference, report);
  verify_stitch(reference, report);
  report.skip("w_embedding", "no model here has an input for the guidance: it is fixed while distilling");
}

}  // namespace dydit
