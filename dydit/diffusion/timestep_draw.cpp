// See the header.
#include "dydit/diffusion/timestep_draw.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "dydit/base/error.h"
#include "dydit/base/noise.h"
#include "dydit/diffusion/path.h"
#include "dydit/diffusion/schedule.h"

namespace dydit {
namespace {

constexpr int kUsualStrata = 4;
constexpr int kSteps = kNumTrainTimesteps;

// Central differences, one-sided at both ends.
std::vector<double> gradient(const std::vector<double>& f) {
  std::vector<double> g(f.size());
  const size_t last = f.size() - 1;
  g[0] = f[1] - f[0];
  g[last] = f[last] - f[last - 1];
  for (size_t i = 1; i < last; ++i) g[i] = (f[i + 1] - f[i - 1]) / 2;
  return g;
}

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

}  // namespace

int speed_timestep(const TimestepOptions& options, double u) {
  const double early = options.k * options.tau, c = u * (early + kSteps - options.tau);
  const int t = static_cast<int>(c < early ? c / options.k : options.tau + (c - early));
  return std::min(t, kSteps - 1);
}

SpeedTable speed_table(const TimestepOptions& options) {
  // The share of noise in x_t, as a variance and as a deviation.
  std::vector<double> variance, deviation;
  double signal = 1;
  for (const double beta : linear_betas()) {
    signal *= 1 - beta;
    variance.push_back(1 - signal);
    deviation.push_back(std::sqrt(1 - signal));
  }
  constexpr double kStill = 1e-4;  // from where on x_t hardly changes
  const std::vector<double> change = gradient(deviation), pace = gradient(variance);
  const int mirror_at = 1 + static_cast<int>(std::find_if(change.begin(), change.end(),
                                                          [](double slope) { return slope < kStill; }) -
                                             change.begin());
  const auto [slowest, fastest] = std::minmax_element(pace.begin(), pace.end());
  const double total = options.k * options.tau + kSteps - options.tau;
  SpeedTable table;
  for (int t = 0; t < kSteps; ++t) {
    const bool early = t < options.tau;
    table.p.push_back((early ? options.k : 1) / total);
    table.mirror.push_back(t < mirror_at ? mirror_at - t : t - mirror_at);
    const double quick = (pace[t] - *slowest) / (*fastest - *slowest);
    table.loss_weight.push_back(early ? 1 - options.lambda + (2 * options.lambda - 1) * quick : 1);
  }
  table.marginal.assign(kSteps, 0);
  for (int t = 0; t < kSteps; ++t) {
    table.marginal[t] += table.p[t] / 2;
    table.marginal[table.mirror[t]] += table.p[t] / 2;
  }
  return table;
}

TimestepSampler::TimestepSampler(const TimestepOptions& options, const Objective& objective)
    : options_(options), objective_(objective) {
  if (options.draw != TimestepDraw::Speed) return;
  DYDIT_USAGE_CHECK(!objective.continuous(),
                    "--timesteps speed: is about the 1000 betas, and this model's time is continuous; take "
                    "stratified, uniform or logit-normal");
  table_ = speed_table(options);
}

double TimestepSampler::time(uint64_t seed, uint64_t step, int sample) const {
  constexpr auto kDraw = static_cast<uint64_t>(TrainingDraw::Timestep);
  const auto uniform = [&](int of) {
    float value = 0;
    fill_uniform({&value, 1}, seed, training_sample(step, of), kDraw);
    return value;
  };
  const auto at_share = [&](double share) {
    const ShareInterval shares = training_shares(objective_);
    return time_at(objective_, std::clamp(share, shares.least, shares.most));
  };
  switch (options_.draw) {
    case TimestepDraw::Uniform:
      return at_share(uniform(sample));
    case TimestepDraw::Speed: {
      // A pair shares its draw, wherever its two are computed.
      const int t = speed_timestep(options_, uniform(sample & ~1));
      return sample % 2 == 0 ? t : table_.mirror[t];
    }
    case TimestepDraw::LogitNormal: {
      float normal = 0;
      fill_normal({&normal, 1}, seed, training_sample(step, sample), kDraw);
      return at_share(1 / (1 + std::exp(-(options_.logit_mean + options_.logit_std * normal))));
    }
    default: {
      const float u = uniform(sample);
      const int strata = options_.strata, length = kSteps / strata;
      // Four always divide a batch that is trained with; of others no stratum shall be the one that is left
      // out.
      const auto turn = static_cast<int>(strata == kUsualStrata ? 0 : step % strata);
      const int stratum = (sample + turn) % strata;
      if (objective_.continuous()) return at_share((stratum + double{u}) / strata);
      return stratum * length + static_cast<int>(u * static_cast<float>(length));
    }
  }
}

bool TimestepSampler::evenly() const {
  return options_.draw == TimestepDraw::Stratified || options_.draw == TimestepDraw::Uniform;
}

double TimestepSampler::share_of(int part, int parts) const {
  const double whole = parts;
  return share_below((part + 1) / whole) - share_below(part / whole);
}

double TimestepSampler::share_below(double share) const {
  if (share <= 0 || share >= 1) return share <= 0 ? 0 : 1;
  if (options_.draw == TimestepDraw::LogitNormal)
    return normal_cdf((std::log(share / (1 - share)) - options_.logit_mean) / options_.logit_std);
  if (table_.marginal.empty()) return share;
  const auto end = table_.marginal.begin() + static_cast<int>(std::lround(share * kSteps));
  return std::accumulate(table_.marginal.begin(), end, 0.0);
}

}  // namespace dydit
