// Reading: file -> names and views -> configuration -> checks -> tensors. The expected names and shapes are
// those of the module itself, so they are written down once, in dit.cpp.
#include "dydit/model/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <future>
#include <set>

#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/base/nearest.h"
#include "dydit/io/diffusers.h"
#include "dydit/io/file.h"
#include "dydit/io/safetensors.h"
#include "dydit/io/safetensors_index.h"
#include "dydit/io/tar.h"
#include "dydit/io/torch_file.h"
#include "dydit/io/torch_writer.h"
#include "dydit/model/dit.h"
#include "dydit/model/embeddings.h"

namespace dydit {
namespace {

using nlohmann::json;

struct RawCheckpoint {
  std::string format, weights_key;
  TensorViews tensors;
  json config = json::object();  // whatever the file says of itself; may be partial
  std::map<std::string, std::string> metadata;
  std::vector<std::string> class_names;    // where they do not lie in the metadata
  std::shared_future<std::string> sha256;  // computed while the tensors are checked
  std::shared_ptr<const MappedFile> file;  // the one file; null for several
  std::shared_ptr<const void> memory;      // keeps the views alive
};

json parse_metadata_json(const std::string& where, const std::string& key, const std::string& text) {
  json value = json::parse(text, nullptr, /*allow_exceptions=*/false);
  DYDIT_CHECK(!value.is_discarded(), "{}: metadata '{}' is not JSON: {:.60}", where, key, text);
  return value;
}

void take_safetensors(RawCheckpoint& raw, TensorViews tensors, std::map<std::string, std::string> metadata,
                      const std::string& name) {
  raw.tensors = std::move(tensors);
  raw.metadata = std::move(metadata);
  if (const auto found = raw.metadata.find("config"); found != raw.metadata.end()) {
    raw.config = parse_metadata_json(name, "config", found->second);
  }
}

std::shared_future<std::string> known(const std::string& sha256) {
  std::promise<std::string> promise;
  promise.set_value(sha256);
  return promise.get_future();
}

RawCheckpoint read_shards(const std::filesystem::path& path) {
  ShardedSafetensors shards = read_safetensors_shards(path);
  RawCheckpoint raw;
  raw.format = fmt::format("safetensors in {} files", shards.files.size());
  raw.sha256 = known(shards.sha256);
  raw.memory =
      std::make_shared<const std::vector<std::shared_ptr<const MappedFile>>>(std::move(shards.files));
  take_safetensors(raw, std::move(shards.tensors), std::move(shards.metadata), path.string());
  return raw;
}

// Its pos_embed is what the formula says: no file has it.
RawCheckpoint read_diffusers(const std::filesystem::path& path) {
  DiffusersDiT dit = read_diffusers_folder(path);
  RawCheckpoint raw;
  raw.format = "diffusers folder";
  raw.sha256 = known(dit.sha256);
  raw.config = *dit.config;
  raw.class_names = std::move(dit.class_names);
  raw.tensors = std::move(dit.tensors);
  const int side = raw.config["input_size"], patch = raw.config["patch_size"];
  DYDIT_CHECK(side % patch == 0, "{}: patches of {} do not divide a side of {}", path.string(), patch, side);
  const int64_t hidden = raw.config["hidden_size"], grid = side / patch;
  constexpr int64_t kLargestTable = 1 << 27;  // a small file may claim any size
  const auto elements = checked_numel(std::array{grid, grid, hidden});
  DYDIT_CHECK(elements && *elements <= kLargestTable,
              "{}: {} x {} patches of hidden size {}; no model is that large", path.string(), grid, grid,
              hidden);
  const at::Tensor pos_embed =
      sincos_pos_embed(static_cast<int>(hidden), static_cast<int>(grid)).contiguous();
  raw.tensors["pos_embed"] = to_view(pos_embed);
  raw.memory =
      std::make_shared<const std::pair<at::Tensor, std::shared_ptr<const void>>>(pos_embed, dit.memory);
  return raw;
}

RawCheckpoint read_raw(const std::filesystem::path& path) {
  if (is_diffusers_folder(path)) return read_diffusers(path);
  if (is_safetensors_index(path)) return read_shards(path);
  const std::string name = path.string();
  RawCheckpoint raw;
  raw.file = MappedFile::open(path);
  raw.memory = raw.file;
  const FileKind kind = sniff_file_kind(raw.file->bytes());
  if (kind == FileKind::Safetensors) {
    SafetensorsFile file = parse_safetensors(raw.file->bytes(), name);
    raw.format = "safetensors";
    take_safetensors(raw, std::move(file.tensors), std::move(file.metadata), name);
  } else if (kind == FileKind::TorchZip || kind == FileKind::TorchLegacy || is_tar(raw.file->bytes())) {
    TorchCheckpoint torch = parse_torch_checkpoint(raw.file->bytes(), name);
    raw.format = kind == FileKind::TorchZip ? "torch zip" : "torch legacy";
    raw.weights_key = torch.weights_key;
    raw.tensors = std::move(torch.tensors);
    raw.metadata = std::move(torch.metadata);
    raw.config = *torch.config;
  } else {
    throw Error(fmt::format("{}: not a weight file; wanted safetensors or a torch file (.pt, .pth)", name));
  }
  raw.sha256 = std::async(std::launch::async, [file = raw.file] { return sha256_hex(file->bytes()); });
  return raw;
}

// Looks up tensors of the raw file while the configuration is inferred.
class Shapes {
 public:
  Shapes(const RawCheckpoint& raw, const std::string& name) : raw_(raw), name_(name) {}

  bool has(const std::string& key) const { return raw_.tensors.contains(key); }

  const std::vector<int64_t>& of(const std::string& key, size_t rank) const {
    const auto found = raw_.tensors.find(key);
    if (found == raw_.tensors.end()) fail_missing(key);
    const auto& shape = found->second.shape;
    DYDIT_CHECK(shape.size() == rank, "{}: {} has {} dimensions {}, expected {}", name_, key, shape.size(),
                shape_text(shape), rank);
    for (const int64_t size : shape) {
      DYDIT_CHECK(size <= kMaxSize, "{}: {} has shape {}; no model is that large", name_, key,
                  shape_text(shape));
    }
    return shape;
  }

  [[noreturn]] void fail_missing(const std::string& key) const {
    std::vector<std::string> present;
    for (const auto& [candidate, view] : raw_.tensors) present.push_back(candidate);
    const std::string nearest = nearest_name(key, present);
    throw Error(
        fmt::format("{}: tensor {} is missing{}. Is this a DiT or DyDiT checkpoint?", name_, key,
                    nearest.empty() ? " (the file holds none)" : " (nearest present: " + nearest + ")"));
  }

  static std::string shape_text(std::span<const int64_t> shape) {
    return fmt::format("({})", fmt::join(shape, ", "));
  }

 private:
  static constexpr int64_t kMaxSize = 1 << 22;  // keeps int arithmetic on sizes far from overflow
  const RawCheckpoint& raw_;
  const std::string& name_;
};

int count_blocks(const RawCheckpoint& raw) {
  int depth = 0;
  while (raw.tensors.contains(fmt::format("blocks.{}.attn.qkv.weight", depth))) ++depth;
  return depth;
}

int config_int(const json& config, const char* key) {
  const auto found = config.is_object() ? config.find(key) : config.end();
  if (found == config.end() || !found->is_number_integer()) return 0;
  const auto value = found->get<int64_t>();
  return value > 0 && value < (1 << 24) ? static_cast<int>(value) : 0;
}

int infer_num_heads(const RawCheckpoint& raw, const Shapes& shapes, const std::string& name, int hidden_size,
                    int flag) {
  const std::string router = "blocks.0.attn_rate.router.weight";
  const int stated = config_int(raw.config, "num_heads");
  int heads = 0;
  if (shapes.has(router)) {
    heads = static_cast<int>(shapes.of(router, 2)[0]) + 1;
  } else if (stated) {
    heads = stated;
  } else {
    heads = flag ? flag : known_num_heads(hidden_size);
  }
  DYDIT_CHECK(heads,
              "{}: cannot tell the number of heads of a static DiT with hidden size {}; pass --num-heads",
              name, hidden_size);
  for (const int other : {stated, flag}) {
    DYDIT_CHECK(!other || other == heads,
                "{}: {} heads by its tensors or metadata, but {} were asked for or stated", name, heads,
                other);
  }
  DYDIT_CHECK(hidden_size % heads == 0, "{}: {} heads do not divide the hidden size {}", name, heads,
              hidden_size);
  return heads;
}

Semantics stated_semantics(const RawCheckpoint& raw, const std::string& name) {
  const auto found = raw.config.is_object() ? raw.config.find("semantics") : raw.config.end();
  if (found == raw.config.end()) return Semantics::Original;
  for (const Semantics known : {Semantics::Original, Semantics::Diffusers}) {
    if (*found == semantics_name(known)) return known;
  }
  throw Error(fmt::format("{}: semantics {:.40}, but this program knows 'original' and 'diffusers'", name,
                          found->dump()));
}

DiTConfig infer_config(const RawCheckpoint& raw, const std::string& name, const CheckpointOptions& options) {
  const Shapes shapes(raw, name);
  DiTConfig config;
  const auto& patch = shapes.of("x_embedder.proj.weight", 4);
  config.hidden_size = static_cast<int>(patch[0]);
  config.in_channels = static_cast<int>(patch[1]);
  config.patch_size = static_cast<int>(patch[2]);
  DYDIT_CHECK(patch[2] == patch[3], "{}: x_embedder.proj.weight has shape {}, expected a square patch", name,
              Shapes::shape_text(patch));
  const int64_t tokens = shapes.of("pos_embed", 3)[1];
  constexpr int64_t kMaxPatchSide = 1 << 10;
  DYDIT_CHECK(patch[2] <= kMaxPatchSide && patch[1] <= kMaxPatchSide,
              "{}: x_embedder.proj.weight has shape {}; no "
              "model has such patches",
              name, Shapes::shape_text(patch));
  const int grid = static_cast<int>(std::lround(std::sqrt(static_cast<double>(tokens))));
  DYDIT_CHECK(int64_t{grid} * grid == tokens && grid > 0, "{}: pos_embed holds {} tokens, expected a square",
              name, tokens);
  config.input_size = grid * config.patch_size;
  config.depth = count_blocks(raw);
  if (config.depth == 0) shapes.fail_missing("blocks.0.attn.qkv.weight");
  config.mlp_hidden = static_cast<int>(shapes.of("blocks.0.mlp.fc1.weight", 2)[0]);
  config.num_classes = static_cast<int>(shapes.of("y_embedder.embedding_table.weight", 2)[0]) - 1;
  const int64_t outputs = shapes.of("final_layer.linear.weight", 2)[0];
  DYDIT_CHECK(config.hidden_size > 0 && config.in_channels > 0 && config.patch_size > 0 &&
                  config.num_classes > 0 && config.mlp_hidden > 0,
              "{}: a tensor has a dimension of size 0", name);
  DYDIT_CHECK(outputs == config.patch_values() || outputs == 2 * config.patch_values(),
              "{}: final_layer.linear.weight has {} rows, expected patch*patch*channels = {} or twice that",
              name, outputs, config.patch_values());
  config.learn_sigma = outputs == 2 * config.patch_values();
  config.width_routers = shapes.has("blocks.0.attn_rate.router.weight");
  config.token_routers = shapes.has("blocks.0.token_selection.mlp_head.0.weight");
  config.num_heads = infer_num_heads(raw, shapes, name, config.hidden_size, options.num_heads);
  config.semantics = stated_semantics(raw, name);
  DYDIT_CHECK(config.mlp_hidden % config.num_heads == 0,
              "{}: {} MLP channels cannot be cut into {} equal groups", name, config.mlp_hidden,
              config.num_heads);
  return config;
}

// True when no element's exponent, the bits of `exponent`, is all ones.
template <typename Bits>
bool exponents_are_finite(const std::byte* data, int64_t count, Bits exponent) {
  bool broken = false;
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, data + i * static_cast<int64_t>(sizeof bits), sizeof bits);
    broken |= (bits & exponent) == exponent;
  }
  return !broken;
}

// Without temporaries: at::isfinite makes several of the tensor's size.
bool is_finite(const TensorView& view, const at::Tensor& tensor) {
  if (is_contiguous(view)) {
    switch (view.dtype) {
      case Dtype::BF16:
        return exponents_are_finite<uint16_t>(view.data, view.numel(), 0x7f80);
      case Dtype::F16:
        return exponents_are_finite<uint16_t>(view.data, view.numel(), 0x7c00);
      case Dtype::F32:
        return exponents_are_finite<uint32_t>(view.data, view.numel(), 0x7f800000);
      default:
        break;
    }
  }
  return at::isfinite(tensor).all().item<bool>();
}

// A few tensors told the configuration; before a model of that size is made, the file must be about as large.
void check_plausible_size(const RawCheckpoint& raw, const DiTConfig& config, const std::string& name) {
  double stored = 0;
  for (const auto& [key, view] : raw.tensors) stored += static_cast<double>(view.numel());
  const double C = config.hidden_size, F = config.mlp_hidden;
  const double expected = config.depth * (4 * C * C + 2 * C * F + 6 * C * C) + C * config.num_tokens() +
                          C * (config.num_classes + 1.0) + 2.0 * C * config.patch_values();
  DYDIT_CHECK(expected <= stored,
              "{}: its shapes speak of {} with at least {:.0f} parameters, but it holds {:.0f}", name,
              model_name(config), expected, stored);
}

Weights check_weights(const RawCheckpoint& raw, const DiTConfig& config, const std::string& name) {
  check_plausible_size(raw, config, name);
  const Shapes shapes(raw, name);
  const DiT model = DiT(config);  // uninitialised: only its names and shapes are read
  Weights weights;
  for (const auto& expected : model->named_parameters()) {
    const auto& shape = shapes.of(expected.key(), expected.value().dim());
    DYDIT_CHECK(expected.value().sizes().equals(shape), "{}: {} has shape {}, expected {} for {}", name,
                expected.key(), Shapes::shape_text(shape), Shapes::shape_text(expected.value().sizes()),
                model_name(config));
    const at::Tensor tensor = to_tensor(raw.tensors.at(expected.key()), raw.memory);
    DYDIT_CHECK(at::isFloatingType(tensor.scalar_type()), "{}: {} is {}, expected a floating-point tensor",
                name, expected.key(), dtype_name(raw.tensors.at(expected.key()).dtype));
    DYDIT_CHECK(is_finite(raw.tensors.at(expected.key()), tensor),
                "{}: {} holds NaN or infinity; the checkpoint is broken", name, expected.key());
    weights.emplace(expected.key(), tensor);
  }
  for (const auto& [key, view] : raw.tensors) {
    DYDIT_CHECK(weights.contains(key), "{}: tensor {} belongs to no part of {}", name, key,
                model_name(config));
  }
  return weights;
}

// One kind of part: a list of `blocks` lists of four counts within 1..largest.
std::vector<KeepCounts::PerQuarter> parse_counts(const json& counts, const char* kind, size_t blocks,
                                                 int largest, const std::string& name) {
  const auto found = counts.is_object() ? counts.find(kind) : counts.end();
  DYDIT_CHECK(found != counts.end() && found->is_array() && found->size() == blocks,
              "{}: metadata 'keep_counts' must hold {} lists of '{}'", name, blocks, kind);
  std::vector<KeepCounts::PerQuarter> result;
  for (const json& block : *found) {
    DYDIT_CHECK(block.is_array() && block.size() == kQuarters,
                "{}: 'keep_counts' of '{}' must be lists of {}", name, kind, kQuarters);
    KeepCounts::PerQuarter quarters{};
    for (int q = 0; q < kQuarters; ++q) {
      DYDIT_CHECK(block[q].is_number_integer() && block[q] >= 1 && block[q] <= largest,
                  "{}: 'keep_counts' of '{}' holds {}, expected 1 to {}", name, kind, block[q].dump(),
                  largest);
      quarters[q] = block[q].get<int>();
    }
    result.push_back(quarters);
  }
  return result;
}

KeepCounts parse_keep_counts(const json& counts, const DiTConfig& config, const std::string& name) {
  const size_t width_blocks = config.width_routers ? config.depth : 0,
               token_blocks = config.token_routers ? config.depth : 0;
  return {parse_counts(counts, "heads", width_blocks, config.num_heads, name),
          parse_counts(counts, "groups", width_blocks, config.num_heads, name),
          parse_counts(counts, "tokens", token_blocks, config.num_tokens(), name)};
}

// Keys that metadata_of writes; others are notes.
constexpr std::array kOwnKeys = {"format",    "dydit_format", "config", "parent_sha256",
                                 "gate_rule", "keep_counts",  "lambda", "class_names"};

void read_metadata(const RawCheckpoint& raw, const std::string& name, Checkpoint& checkpoint) {
  checkpoint.class_names = raw.class_names;
  for (const auto& [key, value] : raw.metadata) {
    if (key == "dydit_format") {
      DYDIT_CHECK(value == std::to_string(kDyditFormat),
                  "{}: dydit_format {}, but this program reads {}; use a newer dydit", name, value,
                  kDyditFormat);
    } else if (key == "gate_rule") {
      DYDIT_CHECK(value == kThresholdRule || value == kCapacityRule,
                  "{}: gate rule '{}', but this program knows '{}' and '{}'", name, value, kThresholdRule,
                  kCapacityRule);
      if (value == kCapacityRule) {
        const auto counts = raw.metadata.find("keep_counts");
        DYDIT_CHECK(counts != raw.metadata.end(), "{}: gate rule 'capacity' without metadata 'keep_counts'",
                    name);
        checkpoint.keep_counts = parse_keep_counts(parse_metadata_json(name, "keep_counts", counts->second),
                                                   checkpoint.config, name);
      }
    } else if (key == "lambda") {
      const json number = parse_metadata_json(name, key, value);
      DYDIT_CHECK(number.is_number(), "{}: metadata 'lambda' is not a number: {:.60}", name, value);
      checkpoint.lambda = number.get<double>();
    } else if (key == "class_names") {
      const json names = parse_metadata_json(name, key, value);
      const bool strings = names.is_array() && std::all_of(names.begin(), names.end(), [](const json& entry) {
                             return entry.is_string();
                           });
      DYDIT_CHECK(strings && names.size() == static_cast<size_t>(checkpoint.config.num_classes),
                  "{}: metadata 'class_names' must be a JSON list of {} strings", name,
                  checkpoint.config.num_classes);
      checkpoint.class_names = names.get<std::vector<std::string>>();
    } else if (std::find(kOwnKeys.begin(), kOwnKeys.end(), key) == kOwnKeys.end()) {
      checkpoint.notes[key] = value;
    }
  }
}

at::ScalarType to_scalar_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::F64:
      return at::kDouble;
    case Dtype::F32:
      return at::kFloat;
    case Dtype::F16:
      return at::kHalf;
    case Dtype::BF16:
      return at::kBFloat16;
    case Dtype::I64:
      return at::kLong;
    case Dtype::I32:
      return at::kInt;
    case Dtype::I16:
      return at::kShort;
    case Dtype::I8:
      return at::kChar;
    case Dtype::U8:
      return at::kByte;
    case Dtype::Bool:
      return at::kBool;
  }
  throw Error("unknown dtype");
}

Dtype from_scalar_type(at::ScalarType type) {
  for (const Dtype dtype : {Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I64, Dtype::I32,
                            Dtype::I16, Dtype::I8, Dtype::U8, Dtype::Bool}) {
    if (to_scalar_type(dtype) == type) return dtype;
  }
  throw Error(fmt::format("tensors of type {} cannot be written to a file", c10::toString(type)));
}

// As they go to a file: pos_embed stays float32.
Weights stored_weights(const Checkpoint& checkpoint, at::ScalarType dtype) {
  Weights stored;
  for (const auto& [name, tensor] : checkpoint.weights) {
    stored[name] = tensor.to(name == "pos_embed" ? at::kFloat : dtype).contiguous();
  }
  return stored;
}

TensorViews views_of(const Weights& weights) {
  TensorViews views;
  for (const auto& [name, tensor] : weights) views[name] = to_view(tensor);
  return views;
}

std::map<std::string, std::string> metadata_of(const Checkpoint& checkpoint) {
  std::map<std::string, std::string> metadata = checkpoint.notes;
  metadata["format"] = "pt";
  metadata["dydit_format"] = std::to_string(kDyditFormat);
  metadata["config"] = config_to_json(checkpoint.config).dump();
  metadata["parent_sha256"] = checkpoint.sha256;
  if (checkpoint.config.is_dynamic())
    metadata["gate_rule"] = checkpoint.keep_counts ? kCapacityRule : kThresholdRule;
  if (checkpoint.keep_counts) {
    metadata["keep_counts"] = json({{"heads", checkpoint.keep_counts->heads},
                                    {"groups", checkpoint.keep_counts->groups},
                                    {"tokens", checkpoint.keep_counts->tokens}})
                                  .dump();
  }
  if (checkpoint.lambda) metadata["lambda"] = json(*checkpoint.lambda).dump();
  if (!checkpoint.class_names.empty()) metadata["class_names"] = json(checkpoint.class_names).dump();
  return metadata;
}

}  // namespace

int64_t Checkpoint::num_parameters() const {
  int64_t count = 0;
  for (const auto& [name, tensor] : weights) {
    if (name != "pos_embed") count += tensor.numel();
  }
  return count;
}

Checkpoint load_checkpoint(const std::filesystem::path& path, const CheckpointOptions& options) {
  const std::string name = path.string();
  const RawCheckpoint raw = read_raw(path);
  Checkpoint checkpoint;
  checkpoint.path = path;
  checkpoint.format = raw.format;
  checkpoint.weights_key = raw.weights_key;
  checkpoint.config = infer_config(raw, name, options);
  checkpoint.weights = check_weights(raw, checkpoint.config, name);
  read_metadata(raw, name, checkpoint);
  checkpoint.sha256 = raw.sha256.get();
  checkpoint.file = raw.file;
  return checkpoint;
}

DiT make_model(const Checkpoint& checkpoint, at::ScalarType compute_dtype) {
  at::NoGradGuard no_grad;
  DiT model(checkpoint.config);
  for (auto& parameter : model->named_parameters()) {
    // A clone even when the dtype agrees: the stored tensor may lie in a read-only mapping.
    parameter.value().set_data(checkpoint.weights.at(parameter.key())
                                   .to(at::kFloat, /*non_blocking=*/false, /*copy=*/true)
                                   .contiguous());
  }
  model->eval();
  if (compute_dtype != at::kFloat) model->set_compute_dtype(compute_dtype);
  return model;
}

void save_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint, at::ScalarType dtype) {
  const Weights stored = stored_weights(checkpoint, dtype);
  write_safetensors(path, views_of(stored), metadata_of(checkpoint));
}

void save_torch_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint,
                           at::ScalarType dtype) {
  const Weights stored = stored_weights(checkpoint, dtype);
  write_torch_file(path, views_of(stored), config_to_json(checkpoint.config), metadata_of(checkpoint));
}

void save_diffusers_folder(const std::filesystem::path& path, const Checkpoint& checkpoint,
                           at::ScalarType dtype) {
  const DiTConfig& config = checkpoint.config;
  const std::string from = checkpoint.path.string();
  DYDIT_USAGE_CHECK(!config.is_dynamic(),
                    "{}: has routers, which a diffusers folder has no place for; --to static drops them",
                    from);
  constexpr double kRounding = 5e-3;  // of a table stored in bfloat16
  const at::Tensor formula = sincos_pos_embed(config.hidden_size, config.grid());
  DYDIT_CHECK(
      (checkpoint.weights.at("pos_embed").to(at::kFloat) - formula).abs().max().item<double>() < kRounding,
      "{}: its pos_embed is not the sin-cos table, the only one that diffusers' DiT has", from);
  const Weights stored = stored_weights(checkpoint, dtype);
  write_diffusers_folder(path, views_of(stored), config_to_json(config));
}

at::Tensor to_tensor(const TensorView& view, std::shared_ptr<const void> owner) {
  const at::ScalarType type = to_scalar_type(view.dtype);
  const size_t alignment = dtype_size(view.dtype);
  void* data = const_cast<std::byte*>(view.data);
  const auto keep_alive = [owner](void*) {};
  if (reinterpret_cast<uintptr_t>(data) % alignment != 0) {
    // from_blob needs aligned elements; the bytes are moved to where they are.
    std::vector<int64_t> strides = view.strides;
    int64_t extent = view.numel();
    if (!strides.empty() && extent > 0) {
      extent = 1;
      for (size_t i = 0; i < strides.size(); ++i) extent += (view.shape[i] - 1) * strides[i];
    }
    const at::Tensor copy = at::empty({extent}, type);
    if (extent > 0) std::memcpy(copy.data_ptr(), data, extent * alignment);
    return strides.empty() ? copy.view(view.shape) : copy.as_strided(view.shape, strides);
  }
  if (view.strides.empty()) return at::from_blob(data, view.shape, keep_alive, type);
  return at::from_blob(data, view.shape, view.strides, keep_alive, type);
}

TensorView to_view(const at::Tensor& tensor) {
  TORCH_INTERNAL_ASSERT(tensor.is_contiguous() && tensor.is_cpu());
  return {from_scalar_type(tensor.scalar_type()),
          tensor.sizes().vec(),
          {},
          static_cast<const std::byte*>(tensor.data_ptr())};
}

}  // namespace dydit
