// Where training draws its times from, and what each then counts for. (SpeeD: Wang et al. 2024, arXiv
// 2405.17403)
#pragma once

#include <cstdint>
#include <vector>

#include "dydit/base/enum_names.h"
#include "dydit/base/objective.h"

namespace dydit {

enum class TimestepDraw {
  Stratified,   // sample j of a batch from quarter j mod 4 of the noise share
  Uniform,      // each by itself
  Speed,        // SpeeD: seldom where nearly all is noise, each beside its mirror
  LogitNormal,  // the noise share's logit is normal (Stable Diffusion 3)
};
inline constexpr EnumNames<TimestepDraw, 4> kTimestepDrawNames = {
    "timesteps",
    {{"stratified", TimestepDraw::Stratified},
     {"uniform", TimestepDraw::Uniform},
     {"speed", TimestepDraw::Speed},
     {"logit-normal", TimestepDraw::LogitNormal}}};

/// Defaults: those of the papers' configurations.
struct TimestepOptions {
  TimestepDraw draw = TimestepDraw::Stratified;
  int strata = 4;  // Stratified: equal parts of t that samples are drawn from in turn
  // Speed: timesteps below tau are drawn k times as often; whether, and how far, the mse of these is weighted
  // by how fast the process changes there.
  double k = 5, lambda = 0.6;
  int tau = 700;
  bool weights = true;
  double logit_mean = 0, logit_std = 1;  // LogitNormal

  bool weighs_loss() const { return draw == TimestepDraw::Speed && weights; }
};

/// SpeeD by timestep, (1000) each, in double.
struct SpeedTable {
  std::vector<double> p;            // of a draw
  std::vector<int> mirror;          // the timestep that a drawn one is paired with
  std::vector<double> marginal;     // of draws and mirrors together
  std::vector<double> loss_weight;  // of the mse
};
SpeedTable speed_table(const TimestepOptions& options);
/// The timestep that is drawn at the uniform number `u`, in (0, 1).
int speed_timestep(const TimestepOptions& options, double u);

class TimestepSampler {
 public:
  /// Throws UsageError for SpeeD in continuous time: it is about the 1000 betas.
  TimestepSampler(const TimestepOptions& options, const Objective& objective);

  /// The time of sample `sample` of the global batch of step `step`, of the objective's clock: a function of
  /// these alone, so neither processes nor micro-batches change it.
  double time(uint64_t seed, uint64_t step, int sample) const;

  /// Factor of the mse at this timestep of the table. Of Speed.
  double loss_weight(double timestep) const { return table_.loss_weight[static_cast<size_t>(timestep)]; }

  /// Whether each time is as likely as any other.
  bool evenly() const;
  /// How often a sampler visits this timestep of the table for each time that it is drawn: what makes a mean
  /// over drawn samples one over even times. Of Speed.
  double visits(double timestep) const {
    return 1.0 / (kNumTrainTimesteps * table_.marginal[static_cast<size_t>(timestep)]);
  }
  /// Share of the samples in part `part` of `parts` equal ones of the noise share.
  double share_of(int part, int parts) const;

 private:
  double share_below(double noise_share) const;

  TimestepOptions options_;
  Objective objective_;
  SpeedTable table_;  // of Speed, else empty
};

}  // namespace dydit
