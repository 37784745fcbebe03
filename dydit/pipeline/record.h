// What is remembered of a generated image: every parameter and what it cost. Printed, written into PNG text
// and read back by `dydit inspect`.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "dydit/io/png.h"
#include "dydit/pipeline/generate.h"

namespace dydit {

/// Key of the JSON record among a PNG's text chunks.
inline constexpr const char* kRecordKey = "dydit";

/// The parameters of a run: model (file, name, sha256), classes, seed, steps, spacing, sampler, ...
/// `timesteps`, as visited, where they were given by hand. `loading` says how the model was loaded where that
/// was said by hand: num_heads, weights, class_names (a file). Names are made printable here, so that no text
/// of a record can be refused once the images are there.
nlohmann::json run_record(const Checkpoint& checkpoint, const GenerateOptions& options,
                          const nlohmann::json& loading = nlohmann::json::object());

/// What a run's plan is and costs, `said` how it was asked for: name, sha256 of its text, required_share of
/// the static model (a bound from above where the threshold rule decides tokens), memory of an image.
nlohmann::json plan_record(const Checkpoint& checkpoint, const GenerateOptions& options,
                           const nlohmann::json& said);
/// The same where its plan is known.
nlohmann::json plan_record(const Checkpoint& checkpoint, const GenerateOptions& options, const RunPlan& plan,
                           const nlohmann::json& said);

/// How a plan was asked for where a policy made it, for plan_record: cache, and of patch sizes and guidance
/// what is not as usual.
nlohmann::json said_policy(const PlanPolicy& policy);

/// One image: index, class, class_name, seconds, required_gmacs, executed_gmacs and both as shares of static;
/// token_share, the mean over tokens, where the sample has one.
nlohmann::json image_record(const Checkpoint& checkpoint, const GenerateOptions& options,
                            const GeneratedSample& sample);

/// The class's name, printable; empty where the model has none.
std::string class_name_of(const Checkpoint& checkpoint, int label);

/// Text chunks of an image that shows `images` (a list of image records): "parameters" as image tools read
/// it, "dydit" the JSON record, "Software".
PngText png_text(const nlohmann::json& run, const nlohmann::json& images);

/// The command that makes the images of a record again, each word quoted for a shell; of a preview and a cost
/// map, too. Records come from files of strangers: throws Error when a value is missing or none that dydit
/// writes.
std::string reproducing_command(const nlohmann::json& run);

}  // namespace dydit
