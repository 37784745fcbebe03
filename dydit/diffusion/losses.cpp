// Written with tensor operations, so that autograd sees them; sizes are small beside the network's.
#include "dydit/diffusion/losses.h"

#include <cmath>
#include <map>
#include <mutex>
#include <numbers>
#include <numeric>
#include <string>

#include <ATen/ATen.h>

#include "dydit/diffusion/gaussian.h"
#include "dydit/diffusion/path.h"
#include "dydit/diffusion/schedule.h"

namespace dydit {
namespace {

// The 1000-step schedule as float32 tensors, (1000).
struct Schedule {
  at::Tensor sqrt_a, sqrt_one_minus_a, sqrt_recip_a, sqrt_recipm1_a, log_beta, posterior_log_variance, coef1,
      coef2;
};

Schedule make_schedule() {
  std::vector<int> all(kNumTrainTimesteps);
  std::iota(all.begin(), all.end(), 0);
  const DiffusionTables tables = make_diffusion_tables(all);
  const auto to_tensor = [](const std::vector<double>& values) { return at::tensor(values, at::kDouble); };
  const at::Tensor a = to_tensor(tables.alphas_cumprod);
  return {at::sqrt(a).to(at::kFloat),
          at::sqrt(1 - a).to(at::kFloat),
          to_tensor(tables.sqrt_recip_alphas_cumprod).to(at::kFloat),
          to_tensor(tables.sqrt_recipm1_alphas_cumprod).to(at::kFloat),
          at::log(to_tensor(tables.betas)).to(at::kFloat),
          to_tensor(tables.posterior_log_variance_clipped).to(at::kFloat),
          to_tensor(tables.posterior_mean_coef1).to(at::kFloat),
          to_tensor(tables.posterior_mean_coef2).to(at::kFloat)};
}

// Kept on every device that asked: a copy to a GPU would make the CPU wait for all that runs there.
const Schedule& schedule_on(at::Device device) {
  static std::mutex mutex;
  static auto& on_device = *new std::map<std::string, Schedule>;  // never freed: a GPU may be gone before it
  const std::lock_guard lock(mutex);
  const auto [found, is_new] = on_device.try_emplace(device.str());
  if (is_new) {
    found->second = make_schedule();
    for (const auto& table :
         {&Schedule::sqrt_a, &Schedule::sqrt_one_minus_a, &Schedule::sqrt_recip_a, &Schedule::sqrt_recipm1_a,
          &Schedule::log_beta, &Schedule::posterior_log_variance, &Schedule::coef1, &Schedule::coef2})
      found->second.*table = (found->second.*table).to(device);
  }
  return found->second;
}

// Entries of `table` at t, shaped to multiply (B, C, H, W).
at::Tensor at_timesteps(const at::Tensor& table, const at::Tensor& t) {
  return table.index_select(0, t).view({-1, 1, 1, 1});
}

at::Tensor mean_flat(const at::Tensor& x) { return x.flatten(1).mean(1); }

// The tanh approximation of the normal distribution function, as the original uses it.
at::Tensor approximate_normal_cdf(const at::Tensor& x) {
  return 0.5 * (1.0 + at::tanh(std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * at::pow(x, 3))));
}

// log-likelihood of x0 in bins of 2/255, the outer ones open.
at::Tensor discretized_gaussian_log_likelihood(const at::Tensor& x0, const at::Tensor& mean,
                                               const at::Tensor& log_scale) {
  const at::Tensor centered = x0 - mean, inverse = at::exp(-log_scale);
  const at::Tensor cdf_plus = approximate_normal_cdf(inverse * (centered + 1.0 / 255.0));
  const at::Tensor cdf_minus = approximate_normal_cdf(inverse * (centered - 1.0 / 255.0));
  const auto log = [](const at::Tensor& p) { return at::log(p.clamp_min(1e-12)); };
  return at::where(x0 < -0.999, log(cdf_plus),
                   at::where(x0 > 0.999, log(1.0 - cdf_minus), log(cdf_plus - cdf_minus)));
}

// Of samples on a path, (B, 1, 1, 1) float32; derivatives by the clock's time, as velocities are.
struct OnPath {
  at::Tensor alpha, sigma, d_alpha, d_sigma;
};
OnPath on_path(const Objective& objective, const at::Tensor& t) {
  const at::Tensor time = t.to(at::kCPU, at::kDouble).contiguous();
  const int64_t B = time.numel();
  const at::Tensor all = at::empty({4, B}, at::kDouble);
  const double direction = objective.clock == ModelClock::Data ? -1 : 1;
  for (int64_t b = 0; b < B; ++b) {
    const NoiseLevel level = level_at(objective.path, noise_share(objective, time.data_ptr<double>()[b]));
    double* const to = all.data_ptr<double>() + b;
    to[0] = level.alpha;
    to[B] = level.sigma;
    to[2 * B] = direction * level.d_alpha;
    to[3 * B] = direction * level.d_sigma;
  }
  const at::Tensor here = all.to(t.device(), at::kFloat).view({4, B, 1, 1, 1});
  return {here[0], here[1], here[2], here[3]};
}

}  // namespace

at::Tensor q_sample(const at::Tensor& x0, const at::Tensor& t, const at::Tensor& noise,
                    const Objective& objective) {
  if (objective.continuous()) {
    const OnPath here = on_path(objective, t);
    return here.alpha * x0 + here.sigma * noise;
  }
  const Schedule& s = schedule_on(t.device());
  return at_timesteps(s.sqrt_a, t) * x0 + at_timesteps(s.sqrt_one_minus_a, t) * noise;
}

at::Tensor loss_target(const at::Tensor& x0, const at::Tensor& t, const at::Tensor& noise,
                       const Objective& objective) {
  if (objective.prediction == Prediction::Noise) return noise;
  const OnPath here = on_path(objective, t);
  return here.d_alpha * x0 + here.d_sigma * noise;
}

DiffusionLoss diffusion_loss(const at::Tensor& output, const at::Tensor& x0, const at::Tensor& x_t,
                             const at::Tensor& t, const at::Tensor& noise, const Objective& objective) {
  const int64_t channels = x0.size(1);
  if (objective.continuous()) {
    const at::Tensor target = loss_target(x0, t, noise, objective);
    const at::Tensor mse = mean_flat((target - output.slice(1, 0, channels)).square());
    return {mse, at::zeros_like(mse)};
  }
  const at::Tensor eps = output.slice(1, 0, channels);
  const at::Tensor mse = mean_flat((noise - eps).square());
  if (output.size(1) == channels) return {mse, at::zeros_like(mse)};

  const Schedule& s = schedule_on(t.device());
  const at::Tensor true_log_variance = at_timesteps(s.posterior_log_variance, t);
  const at::Tensor fraction = (output.slice(1, channels) + 1.0) / 2.0;
  const at::Tensor log_variance =
      fraction * at_timesteps(s.log_beta, t) + (1.0 - fraction) * true_log_variance;
  const at::Tensor coef1 = at_timesteps(s.coef1, t), coef2 = at_timesteps(s.coef2, t);
  const at::Tensor predicted_x0 =
      at_timesteps(s.sqrt_recip_a, t) * x_t - at_timesteps(s.sqrt_recipm1_a, t) * eps.detach();
  const at::Tensor mean = coef1 * predicted_x0 + coef2 * x_t;
  const at::Tensor true_mean = coef1 * x0 + coef2 * x_t;

  const at::Tensor kl =
      0.5 * (-1.0 + log_variance - true_log_variance + at::exp(true_log_variance - log_variance) +
             (true_mean - mean).square() * at::exp(-log_variance));
  const at::Tensor nll = -discretized_gaussian_log_likelihood(x0, mean, 0.5 * log_variance);
  return {mse, at::where(t == 0, mean_flat(nll), mean_flat(kl)) / std::numbers::ln2};
}

}  // namespace dydit
