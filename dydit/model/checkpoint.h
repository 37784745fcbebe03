// Checkpoints: any supported file -> configuration + named tensors, understood from names and shapes; and
// the files that dydit writes (metadata of safetensors: dydit_format, config, lambda, gate_rule,
// class_names).
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/io/file.h"
#include "dydit/io/tensor_view.h"
#include "dydit/model/config.h"
#include "dydit/model/gate_rule.h"

namespace dydit {

enum class Layout;  // dydit/model/layouts.h
class DiT;          // dydit/model/dit.h, which brings torch/torch.h

inline constexpr int kDyditFormat = 2;

using Weights = std::map<std::string, at::Tensor>;

/// One of the sets of weights in a file.
struct WeightsChoice {
  std::string key;         // "ema", "state.model", "ema_model"; empty: the file itself is the set
  size_t tensors = 0;      // counters left out
  int64_t parameters = 0;  // elements of them
  std::string fault;       // why it is no state dict; empty: it is one
};

/// How a quantised checkpoint was made: metadata 'quantization', beside int8 tensors with their scales
/// (dydit/model/quantization.h).
struct Quantization {
  double smoothing = 0;  // exponent of the activations' largest values; 0: not smoothed
  int images = 0;        // that the model made to find them
  uint64_t seed = 0;     // of these
  std::string parent_sha256;
};

/// What a model that was distilled to a few steps is sampled with: metadata 'few_step'.
struct FewStep {
  std::string kind;            // "lcm"
  std::vector<int> timesteps;  // descending
  double guidance = 1;         // that its single row has learned

  bool operator==(const FewStep&) const = default;
};

struct Checkpoint {
  std::filesystem::path path;
  std::string format;                  // "safetensors", "torch zip", "diffusers folder", ...
  std::string weights_key;             // of the set that was taken
  std::vector<WeightsChoice> choices;  // the preferred one first
  std::vector<std::string>
      read_notes;  // lines for whoever reads it: what was stripped, computed, passed over
  DiTConfig config;
  std::string objective_source;  // who says what it predicts: "args", "--path"; empty: nobody, it is a DiT's
  Weights weights;               // as stored; they may share the file's memory: never write into them
  std::optional<KeepCounts> keep_counts;     // of the capacity rule; the threshold rule has none
  std::optional<Quantization> quantization;  // of the blocks' layers; their scales lie among the weights
  std::optional<FewStep> few_step;
  std::string adapter_base;                  // SHA-256 of the file whose weights adapters were trained on
  std::optional<double> lambda;              // work ratio the model was fine-tuned for
  std::vector<std::string> class_names;      // empty or num_classes entries
  std::map<std::string, std::string> notes;  // what else the file's metadata said; kept in files made of it
  std::string sha256;                        // of the file
  std::vector<std::shared_ptr<const MappedFile>>
      files;  // that hold the weights, which may share their memory

  GateRule gate_rule() const { return keep_counts ? GateRule::Capacity : GateRule::Threshold; }
  int64_t num_parameters() const;
  /// Throws Error when one of the files was written to since it was read: what was made of the weights then
  /// is not of the file that sha256 tells. Asked before results are handed out.
  void check_unchanged() const;
};

struct CheckpointOptions {
  int num_heads = 0;         // of a static DiT when the file does not say; 0: tell from the file
  std::string weights = "";  // the set of weights to take, by its key; empty: the preferred one
  // Of kPathNames and kPredictionNames, where the file does not say; empty: tell from the file.
  std::string path = "", prediction = "";
};

/// Reads a checkpoint (a file, the index or folder of several, or a folder of diffusers, which is computed in
/// its semantics) and checks it: every tensor present, of the right shape, finite; nothing unknown; nothing
/// that the file says of itself contradicted. Of several sets of weights averages come first, and a set that
/// lacks tensors is passed over where another one is whole. Heads come from the routers, else the metadata's
/// or cfg's num_heads, else `options`, else the published widths. Throws Error (one line that names the
/// tensor; a missing one with the nearest name present).
Checkpoint load_checkpoint(const std::filesystem::path& path, const CheckpointOptions& options = {});

/// The same for one file in memory; `name` is used in messages. The bytes outlive the result.
Checkpoint parse_checkpoint(std::span<const std::byte> bytes, const std::string& name,
                            const CheckpointOptions& options = {});

/// Builds the model in eval mode with the checkpoint's weights in float32 (blocks in `compute_dtype`).
DiT make_model(const Checkpoint& checkpoint, at::ScalarType compute_dtype = at::kFloat);

/// Writes safetensors with every tensor in `dtype` (float32 or bfloat16), pos_embed always in float32,
/// quantised ones and their scales as they are. This and the next two leave the target as it was when the
/// checkpoint does not pass check_unchanged().
void save_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint, at::ScalarType dtype);
void save_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint, at::ScalarType dtype,
                     Durability durability);

/// The same as a torch zip file: {"ema": state dict, "cfg": configuration, "metadata": what save_checkpoint
/// puts there}. torch.load(weights_only=True) and load_checkpoint read it.
void save_torch_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint,
                           at::ScalarType dtype);

/// Either of the two with the names of a layout, which files of the authors' code have: a torch file's state
/// dict is then bare. Throws UsageError where the checkpoint is of another family.
void save_in_layout(const std::filesystem::path& path, const Checkpoint& checkpoint, at::ScalarType dtype,
                    Layout layout, bool torch);

/// A folder as diffusers' DiTTransformer2DModel reads it (dydit/io/diffusers.h). Throws UsageError for a
/// DyDiT and Error where pos_embed is not the formula's: diffusers has no place for either.
void save_diffusers_folder(const std::filesystem::path& path, const Checkpoint& checkpoint,
                           at::ScalarType dtype);

/// A tensor that shares the view's memory; `owner` keeps that memory alive. Views at addresses that are not a
/// multiple of the element size are copied. Read only.
at::Tensor to_tensor(const TensorView& view, std::shared_ptr<const void> owner);
/// A view of a contiguous CPU tensor, valid while the tensor lives.
TensorView to_view(const at::Tensor& tensor);

}  // namespace dydit
