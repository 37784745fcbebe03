// The curve of a model: what families of plans, and plans that were searched for, cost and do to its images.
#pragma once

#include <functional>
#include <vector>

#include "dydit/base/enum_names.h"
#include "dydit/base/progress.h"
#include "dydit/calibrate/plan_meter.h"
#include "dydit/calibrate/plan_set.h"

namespace dydit {

/// What is tried. Steps: fewer steps of the same sampler, which any cache has to beat. Search: schedules by
/// what single forecasts do (schedule.h). Guide: the best of the others with guidance paid for now and then.
enum class Family { Fora, Taylor, Lagrange, Stack, Steps, Search, Guide };
inline constexpr EnumNames<Family, 7> kFamilyNames = {"family",
                                                      {{"fora", Family::Fora},
                                                       {"taylor", Family::Taylor},
                                                       {"lagrange", Family::Lagrange},
                                                       {"stack", Family::Stack},
                                                       {"steps", Family::Steps},
                                                       {"search", Family::Search},
                                                       {"guide", Family::Guide}}};

struct CalibrateCallbacks {
  std::function<void(const MeasuredPlan&)> on_plan = nullptr;  // each that was measured
  ProgressFn on_progress = nullptr;
  const CancelFlag* cancel = nullptr;  // looked at between sampling steps
};

/// Measures the families on `request`'s images, which has no plan and Philox's noise, and keeps those that no
/// other beats; the run without any plan is one of them. The search looks at other noise (the next seed).
/// Throws UsageError for options that do not fit, Error where the memory cannot suffice, Cancelled.
PlanSet calibrate(const Checkpoint& checkpoint, const GenerateOptions& options,
                  const std::vector<Family>& families, const CalibrateCallbacks& callbacks);

}  // namespace dydit
