// MODEL.plans.json: the plans of a calibration, what each costs and how far its images lie from the full
// run's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <c10/core/ScalarType.h>

#include "dydit/calibrate/plan_meter.h"

namespace dydit {

/// The run that the plans are for.
struct CalibratedRun {
  SamplerOptions sampler;
  std::vector<double> timesteps;  // of the full run, the noisiest last
  float cfg_scale = 1;
  int cfg_channels = 0;
  Mode mode = Mode::Static;
  at::ScalarType dtype = at::kFloat;
};

struct PlanSet {
  std::string model_sha256;
  CalibratedRun run;
  struct {
    int images = 0;
    std::vector<uint64_t> seeds = {};
    std::vector<int> classes = {};  // of the images
    double seconds = 0;             // that the calibration took
  } measured = {};
  std::vector<MeasuredPlan> plans = {};  // at least one, by cost_max
};

CalibratedRun calibrated_run(const DiTConfig& config, const GenerateOptions& options);

/// Where the plans of a model lie: beside it, "MODEL.plans.json".
std::filesystem::path plan_set_path(const std::filesystem::path& model);

/// JSON, a line a step of each plan (docs/formats.md).
std::string plan_set_text(const PlanSet& set, const DiTConfig& config);
/// Throws Error in one line for text that is none; read as strictly as a plan.
PlanSet parse_plan_set(std::string_view text, const std::string& name);
PlanSet read_plan_set(const std::filesystem::path& path);

/// Throws UsageError where the plans are for another model or run: one whose guidance scale lies more than a
/// tenth away, or of other samplers, timesteps, modes or guided channels. `name`: the file.
void check_plan_set(const PlanSet& set, const Checkpoint& checkpoint, const GenerateOptions& options,
                    const std::string& name);

/// How a plan was asked for where a budget chose it, for plan_record. `steps`: of the full run.
nlohmann::json said_budget(double budget, int steps, const MeasuredPlan& chosen);

/// The plan of least error that costs at most `budget` (cost_max); null: all cost more.
const MeasuredPlan* plan_within(const PlanSet& set, double budget);

}  // namespace dydit
