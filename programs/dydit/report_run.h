// Images for a report: what each cost, and where its tokens went, step by step.
#pragma once

#include <nlohmann/json.hpp>

#include "dydit/pipeline/decoder.h"
#include "dydit/pipeline/generate.h"
#include "dydit/report/model_report.h"

namespace dydit {

/// Makes the images of a run that has at least one; `plan` is the run's. `callbacks`: progress and cancel
/// alone. Adds each image's record to record["images"]. No decoder: the samples are pixels, or have none.
/// Throws as generate().
ReportRun make_report_run(const Checkpoint& checkpoint, const GenerateOptions& options, const RunPlan& plan,
                          const LatentDecoder* decoder, GenerateCallbacks callbacks, nlohmann::json& record);

}  // namespace dydit
