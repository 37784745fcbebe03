// The loop: batch -> gradient -> guard -> AdamW -> EMA -> log, checkpoint, samples. One loop for
// pre-training, fine-tuning and the static control: the stage is in the options.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "dydit/base/progress.h"
#include "dydit/data/dataset.h"
#include "dydit/model/checkpoint.h"
#include "dydit/train/communicator.h"
#include "dydit/train/options.h"
#include "dydit/train/state.h"
#include "dydit/train/watch.h"

namespace dydit {

struct RunOptions {
  std::filesystem::path run;  // folder of this run; exists
  bool resume = false;        // continue its newest whole checkpoint
  int64_t checkpoint_every = 1000;
  int keep_last = 3;
  int64_t keep_every = 0;  // checkpoints at multiples are kept for good; 0: none
  int64_t log_every = 100;
  int64_t sample_every = 0;  // 0: never
  nlohmann::json identity;   // run_identity, which a run that is resumed must have, too
  nlohmann::json surroundings =
      nlohmann::json::object();  // threads, versions, ...: told when a resumed run has others
};

struct TrainCallbacks {
  TellFn on_text = [](const std::string&) {};     // what happened, a line each
  TellFn on_warning = [](const std::string&) {};  // what a resumed run found broken or otherwise
  std::function<void(const LogRow&)> on_row = [](const LogRow&) {};
  std::function<void(const Checkpoint& ema, int64_t step, Watch& watch)> on_sample;
  ProgressFn on_progress;
  const CancelFlag* cancel = nullptr;  // looked at between steps; a checkpoint is saved first
};

/// Throws when these cannot go together: batch and processes, routers and stage, images and model, labels and
/// classes.
void check_training(const Dataset& data, const DiTConfig& config, const TrainOptions& options, int processes);

/// What a resumed run must have in common with the one that was saved: the options, the model it started
/// from, class names and images.
nlohmann::json run_identity(const Checkpoint& start, const Dataset& data, const TrainOptions& options);

/// Trains `start` (weights and configuration) on `data` until options.total_steps are done, and returns the
/// steps done: more than that when a resumed run had done more. Throws Cancelled after saving when asked to
/// stop; Error when the loss is NaN (the state before it is saved aside as RUN/nan), when the weights are not
/// finite (nothing is saved), and for whatever else ends a run (a full disk, memory): the state is saved
/// first where it can be, and the error says which checkpoint is there.
int64_t train(const Checkpoint& start, const Dataset& data, const TrainOptions& options,
              const RunOptions& run, Communicator& processes, const TrainCallbacks& callbacks);

}  // namespace dydit
