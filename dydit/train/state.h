// A run on disk: RUN/checkpoints/0001000.safetensors (the EMA as a model) and 0001000.state (all that
// resuming needs), both written under a temporary name, synced and renamed.
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
  int64_t step = 0;        // steps done
  int64_t updates = 0;     // optimizer steps taken; Adam counts these
  int64_t skipped = 0;     // updates left out by the norm guard
  nlohmann::json options;  // options_to_json and whatever else must agree
};

/// Writes both files of a checkpoint. `model` carries config and metadata; its weights are replaced by the
/// EMA.
void save_state(const std::filesystem::path& run, const RunState& state, const ParameterStore& store,
                const Checkpoint& model);

/// Loads the newest whole checkpoint of a run into the store. A broken one is told to `on_broken` with the
/// reason and the one before it is tried. nullopt when the run has none. Throws Error when its options differ
/// from `options`, naming the first key that does.
std::optional<RunState> load_newest_state(const std::filesystem::path& run, ParameterStore& store,
                                          const nlohmann::json& options,
                                          const std::function<void(const std::string& reason)>& on_broken);

/// Removes the temporary files of a run that was killed while it wrote. Nobody else may be writing there.
void remove_leftovers(const std::filesystem::path& run);

/// Removes checkpoints but the last `keep_last` and those at multiples of `keep_every` (0: none).
void rotate_checkpoints(const std::filesystem::path& run, int keep_last, int64_t keep_every);

}  // namespace dydit
