// What load_checkpoint is made of: a file as it was read, the sets of weights in it, what it says of itself.
#pragma once

#include <filesystem>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/io/file.h"
#include "dydit/io/tensor_view.h"
#include "dydit/model/checkpoint.h"
#include "dydit/model/layouts.h"

namespace dydit {

/// A set of weights under the names of a DiT: prefixes are gone, and other layouts' names are translated.
struct WeightSet {
  WeightsChoice choice;
  bool averaged = false;
  TensorViews tensors;
  Layout layout = Layout::DiT;  // of the names that the file has, where name_ours() made them ours
  int depth = 0;
  std::vector<std::string> notes;  // what was done to its names, what was passed over
};

/// What a file says of its model, and where.
struct Stated {
  nlohmann::json config = nlohmann::json::object();  // may be partial, and somebody else's
  std::string where;                                 // "args", "metadata 'config'", "config.json"

  /// The whole number of `key`; 0 where it is missing or none.
  int number(const char* key) const;
};

struct RawCheckpoint {
  std::string name;  // for messages
  std::string format;
  std::vector<WeightSet> sets;  // the preferred one first; at least one
  Stated stated;
  std::map<std::string, std::string> metadata;
  std::vector<std::string> class_names;  // where they do not lie in the metadata
  std::vector<std::string> notes;
  std::shared_future<std::string> sha256;                // computed while the tensors are checked
  std::vector<std::shared_ptr<const MappedFile>> files;  // of the weights
  std::shared_ptr<const void> memory;                    // keeps the views alive
};

/// The set lacks a tensor of a DiT or holds one that is none's: another set may be whole.
class NotWhole : public Error {
 public:
  using Error::Error;
};

// checkpoint.cpp
/// The checkpoint of what was read; its path is the name that messages have.
Checkpoint understand(RawCheckpoint raw, const CheckpointOptions& options);

// checkpoint_read.cpp
RawCheckpoint read_raw(const std::filesystem::path& path);
RawCheckpoint parse_raw(std::span<const std::byte> bytes, const std::string& name);

// weight_sets.cpp
/// Takes counters out and prefixes off (module., _orig_mod., model., ...). Weights of a DiT under several
/// prefixes become as many sets, averages first; `key` is that of the tensors in the file.
std::vector<WeightSet> make_weight_sets(const std::string& key, bool averaged, TensorViews tensors);
/// "'ema' (92 tensors, 6.35 M parameters), 'model' (...)"
std::string list_choices(const std::vector<WeightsChoice>& choices);
/// What the names look like when it is no DiT: " It seems to be a U-ViT."; else empty.
std::string guess_model(const TensorViews& tensors);

/// Gives the set our names for those of its layout. Throws Error as count_blocks does.
void name_ours(WeightSet& set, const std::string& name);
/// Whether it has a model's patch embedding.
bool holds_model(const WeightSet& set);

// weights.cpp
/// Without temporaries: at::isfinite makes several of the tensor's size.
bool is_finite(const at::Tensor& tensor);

// checkpoint_config.cpp
/// Throws Error for a dydit_format that this program does not know.
void check_format(const RawCheckpoint& raw);
bool is_ours(const RawCheckpoint& raw);
/// What the network predicts and of what path, by what the file says of itself and the options say, and where
/// that is said; nothing where neither says. Throws Error where they contradict each other or name one that
/// is not offered.
struct StatedObjective {
  Objective objective;
  std::string source;  // "args", "metadata 'config'", "--path"
};
std::optional<StatedObjective> stated_objective(const RawCheckpoint& raw, const CheckpointOptions& options);
/// Computes the set's pos_embed where it is missing and the size is stated.
void add_pos_embed(RawCheckpoint& raw, WeightSet& set);
/// From names and shapes, and what is stated where they do not tell. Throws NotWhole or Error.
/// Puts what is remarkable into the set's notes.
DiTConfig infer_config(const RawCheckpoint& raw, WeightSet& set, const CheckpointOptions& options);
/// Throws Error where what the file says of itself and its tensors contradict each other.
void check_stated(const RawCheckpoint& raw, const WeightSet& set, const DiTConfig& config);
Weights check_weights(const RawCheckpoint& raw, const WeightSet& set, const DiTConfig& config);

// checkpoint_metadata.cpp
/// Gate rule, keep counts, adapters' base, lambda, class names, notes. What is not ours becomes a line of
/// `read_notes`.
void read_metadata(const RawCheckpoint& raw, Checkpoint& checkpoint);
std::map<std::string, std::string> metadata_of(const Checkpoint& checkpoint);
/// What the metadata say of adapters; nothing where they do not. Throws Error.
struct StatedAdapter {
  AdapterConfig config;
  std::string base;  // its identity (adapters.h)
};
std::optional<StatedAdapter> stated_adapter(const RawCheckpoint& raw);
/// The JSON of a metadata value within bounds; nothing when it is none.
std::optional<nlohmann::json> parse_metadata(const std::string& text);
inline constexpr int kMetadataDepth = 8;  // ours nests three deep; what nests deeper would take the stack

}  // namespace dydit
