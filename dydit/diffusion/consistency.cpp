// Written with tensor operations, so that autograd sees them; the tables are those of the 1000 betas.
#include "dydit/diffusion/consistency.h"

#include <map>
#include <mutex>
#include <numeric>
#include <string>

#include <ATen/ATen.h>

#include "dydit/diffusion/gaussian.h"
#include "dydit/diffusion/lcm.h"

namespace dydit {
namespace {

constexpr double kHuber = 1e-3;

// By timestep, (1000) float32 each; a = alphas_cumprod.
struct Tables {
  at::Tensor sqrt_a, sqrt_one_minus_a, skip, out;
};

Tables make_tables() {
  std::vector<int> all(kNumTrainTimesteps);
  std::iota(all.begin(), all.end(), 0);
  const at::Tensor a = at::tensor(make_diffusion_tables(all).alphas_cumprod, at::kDouble);
  std::vector<double> skip, out;
  for (const int t : all) {
    skip.push_back(lcm_boundary(t).skip);
    out.push_back(lcm_boundary(t).out);
  }
  return {at::sqrt(a).to(at::kFloat), at::sqrt(1 - a).to(at::kFloat),
          at::tensor(skip, at::kDouble).to(at::kFloat), at::tensor(out, at::kDouble).to(at::kFloat)};
}

// Kept on every device that asked: a copy to a GPU would make the CPU wait for all that runs there.
const Tables& tables_on(at::Device device) {
  static std::mutex mutex;
  static auto& on_device = *new std::map<std::string, Tables>;  // never freed: a GPU may be gone before it
  const std::lock_guard lock(mutex);
  const auto [found, is_new] = on_device.try_emplace(device.str());
  if (is_new) {
    const Tables made = make_tables();
    found->second = {made.sqrt_a.to(device), made.sqrt_one_minus_a.to(device), made.skip.to(device),
                     made.out.to(device)};
  }
  return found->second;
}

at::Tensor at_timesteps(const at::Tensor& table, const at::Tensor& t) {
  return table.index_select(0, t).view({-1, 1, 1, 1});
}

}  // namespace

at::Tensor lcm_x0(const at::Tensor& x, const at::Tensor& eps, const at::Tensor& t) {
  const Tables& tables = tables_on(x.device());
  return (x - at_timesteps(tables.sqrt_one_minus_a, t) * eps) / at_timesteps(tables.sqrt_a, t);
}

at::Tensor lcm_consistency(const at::Tensor& x, const at::Tensor& eps, const at::Tensor& t) {
  const Tables& tables = tables_on(x.device());
  return at_timesteps(tables.skip, t) * x + at_timesteps(tables.out, t) * lcm_x0(x, eps, t);
}

at::Tensor lcm_previous(const at::Tensor& t) { return (t - kLcmStride).clamp_min(0); }

at::Tensor lcm_teacher_step(const at::Tensor& x, const at::Tensor& eps_cond, const at::Tensor& eps_uncond,
                            const at::Tensor& t, const at::Tensor& w) {
  at::Tensor x0 = lcm_x0(x, eps_cond, t), eps = eps_cond;
  if (eps_uncond.defined()) {
    x0 = x0 + w * (x0 - lcm_x0(x, eps_uncond, t));
    eps = eps + w * (eps - eps_uncond);
  }
  const Tables& tables = tables_on(x.device());
  const at::Tensor end = lcm_previous(t);
  return at_timesteps(tables.sqrt_a, end) * x0 + at_timesteps(tables.sqrt_one_minus_a, end) * eps;
}

at::Tensor consistency_loss(const at::Tensor& f, const at::Tensor& g, ConsistencyLoss loss) {
  const at::Tensor squares = (f - g).square();
  const at::Tensor values =
      loss == ConsistencyLoss::L2 ? squares : at::sqrt(squares + kHuber * kHuber) - kHuber;
  return values.flatten(1).mean(1);
}

}  // namespace dydit
