// What a plan costs, and how far its images lie from those of the same model with everything computed. That
// says how alike they are, not how good.
#pragma once

#include <optional>
#include <vector>

#include "dydit/base/progress.h"
#include "dydit/pipeline/generate.h"

namespace dydit {

/// A plan and what was measured of it over some images.
struct MeasuredPlan {
  // Multiply-adds that an image requires, as a share of the static model's over all steps of the full run
  // with full guidance: the mean and, where the tokens of images differ, the largest.
  double cost = 0, cost_max = 0;
  // Mean of ||x - x_full|| / ||x_full|| of the final state x, and the standard error of that mean.
  double error = 0, error_se = 0;
  double executed = 0,
         seconds = 0;               // an image's multiply-adds as a share likewise, its time: not in the file
  std::optional<double> psnr = {};  // dB, of values in [-1, 1], by the mean square; unset: no difference
  PlanSpec plan = {};
};

class PlanMeter {
 public:
  /// Makes the images of `request`, which has no plan and the noise of Philox, with everything computed.
  /// Throws as Pipeline::generate.
  PlanMeter(const Pipeline& pipeline, const Request& request, const SamplingOptions& options,
            const CancelFlag* cancel);

  /// Makes them again by a plan, whose steps may be others.
  MeasuredPlan measure(const PlanSpec& plan) const;

 private:
  std::vector<GeneratedSample> make(const Request& request) const;

  const Pipeline& pipeline_;
  const Request request_;
  const SamplingOptions options_;
  const CancelFlag* const cancel_;
  const std::vector<GeneratedSample> full_;
};

/// Those that no other one beats in both cost_max and error, by cost; of equals the first.
std::vector<MeasuredPlan> pareto_set(std::vector<MeasuredPlan> plans);

}  // namespace dydit
