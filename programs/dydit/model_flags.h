// Flags that every verb with a model shares: which file, which engine, how it computes, its classes' names.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli.h"
#include "dydit/engine/engine.h"
#include "dydit/model/checkpoint.h"

namespace dydit {

inline constexpr const char* kCheckpointHelp =
    "Checkpoint: safetensors, the index or folder of several, a torch file (.pt, .pth), or a folder of "
    "diffusers";

inline constexpr const char* kDtypeHelp =
    "Arithmetic of the blocks; auto: bf16 or f32, which the processor does faster, by a table (bench "
    "--levels), on a GPU bf16; of a quantised checkpoint int8";

/// How most verbs call the choice among a file's sets of weights.
inline constexpr const char* kWeightsFlag = "--weights";

/// --num-heads, --weights, --path and --prediction.
void add_checkpoint_options(Cli& cli, CheckpointOptions& options,
                            const std::string& weights_flag = kWeightsFlag);

/// --model and those.
void add_model_path(Cli& cli, std::string& path, CheckpointOptions& options,
                    const std::string& weights_flag = kWeightsFlag);

/// Loads it and notes what was taken, computed or passed over on reading.
Checkpoint load_model(Cli& cli, const std::string& path, const CheckpointOptions& options);

/// --device: the CPU, and of a program built with CUDA a GPU, with `several` by its number.
void add_device(Cli& cli, std::string& device, bool several);
/// Of its value; "cuda" is the first.
at::Device gpu_or_cpu(const std::string& name);

/// How the model was loaded, for the record: what `options` say where the file does not.
nlohmann::json loading_of(const CheckpointOptions& options, const std::string& class_names_file);

/// --cfg-channels: how many channels are guided; unset: the configuration's.
void add_guided_channels(Cli& cli, std::string& text);
std::optional<int> guided_channels_of(const Cli& cli, const std::string& text, const DiTConfig& config);

/// Which engine computes, and where.
struct DeviceFlags {
  std::string engine = "auto", device = "cpu", graphs = "auto";
  bool no_batch_invariant = false;

  void add(Cli& cli);
  /// After parsing: flags of a GPU where there is none.
  void check(Cli& cli) const;
  /// auto: the torch engine on a GPU, else the CPU's.
  EngineKind resolve_engine() const;
  DeviceOptions resolve() const;
};

struct ModelFlags {
  std::string path;
  CheckpointOptions checkpoint;
  std::string dtype = "auto";
  int threads = 1;
  DeviceFlags where;

  /// `default_dtype` and `default_engine` differ between verbs.
  void add(Cli& cli, const std::string& default_dtype = "auto", const std::string& default_engine = "auto",
           const std::string& weights_flag = kWeightsFlag);
  /// The same with the model as the verb's first word, without --model.
  void add_positional(Cli& cli);
  /// --dtype, --engine, --device with what goes with it, and --threads alone.
  void add_computing(Cli& cli);
  Checkpoint load(Cli& cli) const { return load_model(cli, path, checkpoint); }
  EngineKind resolve_engine() const { return where.resolve_engine(); }
  /// --dtype; auto: of a quantised checkpoint int8 where engine and processor have it.
  at::ScalarType resolve_dtype(const Checkpoint& checkpoint) const;
  EngineOptions engine_options(const Checkpoint& checkpoint) const;
};

/// Class names from a file, one a line: UTF-8 with or without a byte order mark; empty lines do not count.
/// Notes names that several classes have. Throws Error that names the file, and the line where there is one:
/// not UTF-8, control characters, not exactly `num_classes` names.
std::vector<std::string> read_class_names(Cli& cli, const std::string& path, int num_classes);

}  // namespace dydit
