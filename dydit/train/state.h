// A run on disk: RUN/checkpoints/0001000.safetensors (the EMA as a model) and 0001000.state (all that
// resuming needs), both written under a temporary name, synced and renamed. The state knows the SHA-256 of
// each of its parts and of the model beside it.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "dydit/model/checkpoint.h"
#include "dydit/train/parameters.h"

namespace dydit {

struct RunState {
  int64_t step = 0;                  // steps done
  int64_t updates = 0;               // optimizer steps taken; Adam counts these
  int64_t skipped = 0;               // updates left out by the norm guard
  nlohmann::json options;            // options_to_json and whatever else must agree
  nlohmann::json surroundings = {};  // what may differ and is then told: threads, versions, ...
  bool model_is_whole = true;        // of a loaded state: the model beside it is the one saved with it
};

using TellFn = std::function<void(const std::string& line)>;

/// Writes both files of a checkpoint. `ema` carries config, metadata and the EMA's weights.
void save_state(const std::filesystem::path& run, const RunState& state, const ParameterStore& store,
                const Checkpoint& ema);

/// Writes the model of a checkpoint alone.
void save_model(const std::filesystem::path& run, int64_t step, const Checkpoint& ema);

/// Loads the newest whole checkpoint of a run into the store. A broken one is told with the reason and the
/// one before it is tried; a model that is not the one saved with its state, and a state of an older version,
/// which has no checksums, are told too. nullopt when the run has none. Throws Error when its options differ
/// from `options`, naming the first that does.
std::optional<RunState> load_newest_state(const std::filesystem::path& run, ParameterStore& store,
                                          const nlohmann::json& options, const TellFn& tell);

/// Why load_newest_state would not continue this run, as far as can be told without reading the tensors;
/// nullopt when it would.
std::optional<std::string> why_not_resumed(const std::filesystem::path& run, const nlohmann::json& options);

/// "threads = 2 (now 4), dydit = 0.1.0 (now 0.2.0)"; empty when nothing differs that both know.
std::string differing_surroundings(const nlohmann::json& saved, const nlohmann::json& now);

/// Where the model of a step lies.
std::filesystem::path model_path(const std::filesystem::path& run, int64_t step);

/// Removes the temporary files of a run that was killed while it wrote. Nobody else may be writing there.
void remove_leftovers(const std::filesystem::path& run);

/// Removes checkpoints but the last `keep_last` up to `step`, which was just saved, and those at multiples of
/// `keep_every` (0: none). Later ones are what a resumed run passed over: they never count as kept.
void rotate_checkpoints(const std::filesystem::path& run, int64_t step, int keep_last, int64_t keep_every);

}  // namespace dydit
