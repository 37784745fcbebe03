// What a single forecast step does to a run, measured on full trajectories of some images.
#pragma once

#include <vector>

#include "dydit/base/progress.h"
#include "dydit/calibrate/schedule.h"
#include "dydit/pipeline/generate.h"

namespace dydit {

/// Forecasts of a search are polynomials through the last features.
inline constexpr Forecast kSearchForecast = {ForecastKind::Lagrange};

/// Full steps of a schedule lie at most so many apart.
inline constexpr int kSearchWindow = 8;

struct ForecastErrors {
  // Mean over the images of ||eps - eps_full||, both guided, where all branches of the step are forecast and
  // everything before it was full.
  ErrorTable table;
  std::vector<double> sensitivity;  // (S) relative distance of the final image by an error of 1 in this step
  StepCosts costs;                  // shares of the static model's run
};

/// What the features of the steps within reach take for an image, both rows.
int64_t forecast_error_bytes(const DiTConfig& config, at::ScalarType kept, const Request& request);

/// Measures with `request`'s images, all at once. 3 steps or more. Throws as Pipeline::generate.
ForecastErrors measure_forecast_errors(const Pipeline& pipeline, const Request& request, int threads,
                                       const ProgressFn& on_progress, const CancelFlag* cancel);

}  // namespace dydit
