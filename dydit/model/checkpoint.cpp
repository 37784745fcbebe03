// A checkpoint step by step: what the file is, its sets of weights, what it says of itself, the
// configuration, the checks. Each step is a file of its own (checkpoint_parts.h).
#include "dydit/model/checkpoint.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "dydit/base/error.h"
#include "dydit/io/text.h"
#include "dydit/model/checkpoint_parts.h"
#include "dydit/model/dit.h"
#include "dydit/model/quantization.h"

namespace dydit {
namespace {

// Of one set; what it says in passing are its read_notes.
Checkpoint understand(RawCheckpoint& raw, WeightSet& set, const CheckpointOptions& options) {
  name_ours(set, raw.name);
  add_pos_embed(raw, set);
  Checkpoint checkpoint;
  checkpoint.format = raw.format;
  checkpoint.weights_key = set.choice.key;
  checkpoint.config = infer_config(raw, set, options);
  if (const auto said = stated_objective(raw, options)) checkpoint.objective_source = said->source;
  check_stated(raw, set, checkpoint.config);
  checkpoint.weights = check_weights(raw, set, checkpoint.config);
  read_metadata(raw, checkpoint);
  checkpoint.read_notes.insert(checkpoint.read_notes.begin(), set.notes.begin(), set.notes.end());
  return checkpoint;
}

std::vector<WeightsChoice> choices_of(const RawCheckpoint& raw) {
  std::vector<WeightsChoice> choices;
  for (const WeightSet& set : raw.sets) choices.push_back(set.choice);
  return choices;
}

Checkpoint take_asked(RawCheckpoint& raw, const CheckpointOptions& options) {
  for (WeightSet& set : raw.sets) {
    if (set.choice.key != options.weights) continue;
    if (!set.choice.fault.empty()) throw Error(set.choice.fault);
    return understand(raw, set, options);
  }
  const std::vector<WeightsChoice> choices = choices_of(raw);
  DYDIT_USAGE_CHECK(choices.size() > 1 || !choices[0].key.empty(),
                    "--weights {}: {} holds one set of weights without a name; leave it out",
                    printable(options.weights), raw.name);
  throw UsageError(fmt::format("--weights {}: {} has no such weights; it holds {}",
                               printable(options.weights), raw.name, list_choices(choices)));
}

// The first that is a whole DiT. An error in a set that is whole is an error: the next one is another model.
Checkpoint take_preferred(RawCheckpoint& raw, const CheckpointOptions& options) {
  std::string first_fault;
  std::vector<std::string> passed_over;
  const auto pass_over = [&](const WeightSet& set, const std::string& fault) {
    if (first_fault.empty()) first_fault = fault;
    passed_over.push_back(
        fmt::format("weights '{}' passed over: {}", printable(set.choice.key, 60),
                    fault.starts_with(raw.name + ": ") ? fault.substr(raw.name.size() + 2) : fault));
  };
  for (WeightSet& set : raw.sets) {
    if (!set.choice.fault.empty()) {
      pass_over(set, set.choice.fault);
      continue;
    }
    try {
      Checkpoint checkpoint = understand(raw, set, options);
      checkpoint.read_notes.insert(checkpoint.read_notes.begin(), passed_over.begin(), passed_over.end());
      return checkpoint;
    } catch (const NotWhole& error) {
      pass_over(set, error.what());
    } catch (const Error& error) {
      if (raw.sets.size() == 1) throw;
      throw Error(fmt::format("{}; these are the weights '{}', --weights takes another set of {}",
                              error.what(), printable(set.choice.key, 60), list_choices(choices_of(raw))));
    }
  }
  throw Error(first_fault);
}

}  // namespace

Checkpoint understand(RawCheckpoint raw, const CheckpointOptions& options) {
  check_format(raw);
  Checkpoint checkpoint = options.weights.empty() ? take_preferred(raw, options) : take_asked(raw, options);
  checkpoint.path = raw.name;
  checkpoint.choices = choices_of(raw);
  if (checkpoint.choices.size() > 1 && options.weights.empty()) {
    checkpoint.read_notes.push_back(fmt::format("took the weights '{}' of {}; --weights KEY takes others",
                                                printable(checkpoint.weights_key, 60),
                                                list_choices(checkpoint.choices)));
  }
  checkpoint.read_notes.insert(checkpoint.read_notes.begin(), raw.notes.begin(), raw.notes.end());
  checkpoint.sha256 = raw.sha256.get();
  checkpoint.files = raw.files;
  return checkpoint;
}

void Checkpoint::check_unchanged() const {
  for (const auto& file : files) file->check_unchanged();
}

int64_t Checkpoint::num_parameters() const {
  int64_t count = 0;
  for (const auto& [name, tensor] : weights) {
    const bool counts = !name.ends_with("pos_embed") || config.learned_positions;
    if (counts && !is_quantization_part(name)) count += tensor.numel();
  }
  return count;
}

Checkpoint load_checkpoint(const std::filesystem::path& path, const CheckpointOptions& options) {
  Checkpoint checkpoint = understand(read_raw(path), options);
  checkpoint.path = path;
  return checkpoint;
}

Checkpoint parse_checkpoint(std::span<const std::byte> bytes, const std::string& name,
                            const CheckpointOptions& options) {
  RawCheckpoint raw = parse_raw(bytes, name);
  raw.sha256 = std::async(std::launch::deferred, [bytes] { return sha256_hex(bytes); });
  return understand(std::move(raw), options);
}

DiT make_model(const Checkpoint& checkpoint, at::ScalarType compute_dtype) {
  at::NoGradGuard no_grad;
  DiT model(checkpoint.config);
  for (auto& parameter : model->named_parameters()) {
    // A clone even when the dtype agrees: the stored tensor may lie in a read-only mapping.
    parameter.value().set_data(float_weight(checkpoint.weights, parameter.key())
                                   .to(at::kFloat, /*non_blocking=*/false, /*copy=*/true)
                                   .contiguous());
  }
  model->eval();
  if (compute_dtype != at::kFloat) model->set_compute_dtype(compute_dtype);
  return model;
}

}  // namespace dydit
