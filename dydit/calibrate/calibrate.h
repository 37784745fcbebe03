// The curve of a model: what families of plans, and plans that were searched for, cost and do to its images.
#pragma once

#include <functional>
#include <vector>

#include "dydit/base/enum_names.h"
#include "dydit/base/progress.h"
#include "dydit/calibrate/plan_meter.h"
#include "dydit/calibrate/plan_set.h"

namespace dydit {

/// What is tried. Threshold: full steps where the input has changed enough (input_change.h). Steps: fewer
/// steps of the same sampler, which any cache has to beat. Levels: the best of the others with larger patches
/// in the first steps, of models that have them. Search: schedules by what single forecasts do (schedule.h).
/// Guide: the best of the others with guidance paid for now and then.
enum class Family { Fora, Taylor, Lagrange, Stack, Threshold, Steps, Search, Levels, Guide };
inline constexpr EnumNames<Family, 9> kFamilyNames = {"family",
                                                      {{"fora", Family::Fora},
                                                       {"taylor", Family::Taylor},
                                                       {"lagrange", Family::Lagrange},
                                                       {"stack", Family::Stack},
                                                       {"threshold", Family::Threshold},
                                                       {"steps", Family::Steps},
                                                       {"search", Family::Search},
                                                       {"levels", Family::Levels},
                                                       {"guide", Family::Guide}}};

struct CalibrateOptions : GenerateOptions {
  std::vector<Family> families = {};
  int search_images = 4;  // that schedules are searched and thresholds measured on, of other noise
};

struct CalibrateCallbacks {
  std::function<void(const MeasuredPlan&)> on_plan = nullptr;  // each that was measured
  ProgressFn on_progress = nullptr;
  const CancelFlag* cancel = nullptr;  // looked at between sampling steps
};

/// Measures the families on the request's images, which has no plan and Philox's noise, and keeps the plans
/// that no other beats; the run without any is one of them. The search looks at the noise of the next seed.
/// Throws UsageError for options that do not fit, Error where the memory cannot suffice, Cancelled.
PlanSet calibrate(const Checkpoint& checkpoint, const CalibrateOptions& options,
                  const CalibrateCallbacks& callbacks);

}  // namespace dydit
