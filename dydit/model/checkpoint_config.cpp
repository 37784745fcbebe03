// The configuration: inferred from names and shapes, and what the file says of itself held against it. The
// expected names and shapes are those of the module, so that they are written down once, in dit.cpp.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include "dydit/base/nearest.h"
#include "dydit/base/timesteps.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"
#include "dydit/model/adapters.h"
#include "dydit/model/checkpoint_parts.h"
#include "dydit/model/dit.h"
#include "dydit/model/embeddings.h"
#include "dydit/model/quantization.h"

namespace dydit {
namespace {

using nlohmann::json;

// Looks up tensors of a set while the configuration is inferred.
class Shapes {
 public:
  Shapes(const WeightSet& set, const std::string& name) : set_(set), name_(name) {}

  bool has(const std::string& key) const { return set_.tensors.contains(key); }

  const std::vector<int64_t>& of(const std::string& key, size_t rank) const {
    const auto found = set_.tensors.find(key);
    if (found == set_.tensors.end()) fail_missing(key);
    const auto& shape = found->second.shape;
    DYDIT_CHECK(shape.size() == rank, "{}: {} has {} dimensions {}, expected {}", name_, in_file(key),
                shape.size(), shape_text(shape), rank);
    for (const int64_t size : shape) {
      DYDIT_CHECK(size <= kMaxSize, "{}: {} has shape {}; no model is that large", name_, in_file(key),
                  shape_text(shape));
    }
    return shape;
  }

  // What the file calls a tensor.
  std::string in_file(const std::string& key) const {
    return LayoutNames(set_.layout, set_.depth).theirs(key);
  }

  [[noreturn]] void fail_missing(const std::string& key, const char* way_out = "") const {
    std::vector<std::string> present;
    for (const auto& [candidate, view] : set_.tensors) present.push_back(in_file(candidate));
    const std::string nearest = nearest_name(in_file(key), present);
    throw NotWhole(fmt::format(
        "{}: tensor {} is missing{}. Is this a DiT or DyDiT checkpoint?{}{}", name_, in_file(key),
        nearest.empty() ? " (the file holds none)" : " (nearest present: " + printable(nearest) + ")",
        guess_model(set_.tensors), way_out));
  }

 private:
  static constexpr int64_t kMaxSize = 1 << 22;  // keeps int arithmetic on sizes far from overflow
  const WeightSet& set_;
  const std::string& name_;
};

int infer_num_heads(const RawCheckpoint& raw, const Shapes& shapes, const DiTConfig& config, int flag) {
  const int hidden_size = config.hidden_size;
  const std::string router = "blocks.0.attn_rate.router.weight";
  const int stated = raw.stated.number("num_heads");
  int heads = 0;
  if (shapes.has(router)) {
    heads = static_cast<int>(shapes.of(router, 2)[0]) + 1;
  } else if (stated) {
    heads = stated;
  } else {
    heads = flag ? flag : known_num_heads(config);
  }
  DYDIT_CHECK(heads,
              "{}: cannot tell the number of heads of a static {} with hidden size {}; pass --num-heads",
              raw.name, config.time_token ? "U-ViT" : "DiT", hidden_size);
  for (const int other : {stated, flag}) {
    DYDIT_CHECK(!other || other == heads,
                "{}: {} heads by its tensors or metadata, but {} were asked for or stated", raw.name, heads,
                other);
  }
  DYDIT_CHECK(hidden_size % heads == 0, "{}: {} heads do not divide the hidden size {}", raw.name, heads,
              hidden_size);
  return heads;
}

Semantics stated_semantics(const RawCheckpoint& raw) {
  const auto found = raw.stated.config.find("semantics");
  if (found == raw.stated.config.end()) return Semantics::Original;
  const auto known = kSemanticsNames.find(found->is_string() ? found->get<std::string>() : "");
  DYDIT_CHECK(known, "{}: semantics {}, but this program knows 'original' and 'diffusers'", raw.name,
              printable(json_text(*found), 40));
  return *known;
}

// A text of the configuration, or else of the metadata; empty without.
std::string stated_text(const RawCheckpoint& raw, const char* key) {
  const auto found = raw.stated.config.find(key);
  if (found != raw.stated.config.end()) return found->is_string() ? found->get<std::string>() : "";
  const auto beside = raw.metadata.find(key);
  return beside == raw.metadata.end() ? "" : beside->second;
}

// "DiT-XL/2" as the scripts of DiT and DyDiT write it, also DiT_XL_2: as named_config takes it; else empty.
std::string published_name(std::string name) {
  for (const char* prefix : {"DyDiT", "DiT", "SiT"}) {
    if (!name.starts_with(prefix) || name.size() <= std::strlen(prefix)) continue;
    name.erase(0, std::strlen(prefix) + 1);
    std::replace(name.begin(), name.end(), '_', '/');
    std::replace(name.begin(), name.end(), '-', '/');
    return name;
  }
  return "";
}

void check_named_size(const RawCheckpoint& raw, const DiTConfig& config) {
  const std::string name = stated_text(raw, "model");
  DiTConfig named;
  try {
    named = named_config(published_name(name));
  } catch (const UsageError&) {
    return;  // a name of somebody's own
  }
  DYDIT_CHECK(
      named.depth == config.depth && named.hidden_size == config.hidden_size &&
          named.patch_size == config.patch_size,
      "{}: {} says model {} ({} blocks, hidden {}, patch {}), but its tensors are of {} blocks, hidden {}, "
      "patch {}; one of the two is of another model",
      raw.name, raw.stated.where.empty() ? "metadata" : raw.stated.where, quote(name), named.depth,
      named.hidden_size, named.patch_size, config.depth, config.hidden_size, config.patch_size);
}

void check_stated_classes(const RawCheckpoint& raw, const DiTConfig& config) {
  if (config.time_token) return;  // U-ViT's number counts rows of the table
  const int stated = raw.stated.number("num_classes"), rows = config.num_classes + 1;
  const auto dropout = raw.stated.config.find("class_dropout_prob");
  const bool never_dropped =
      dropout != raw.stated.config.end() && dropout->is_number() && dropout->get<double>() == 0;
  DYDIT_CHECK(
      stated != rows && (stated || !never_dropped),
      "{}: {} says {} and the table of labels has {} rows: all of them are classes and none is the null "
      "class of guidance, which this program needs. Train with class_dropout_prob above 0",
      raw.name, raw.stated.where,
      stated ? fmt::format("{} classes{}", stated, never_dropped ? " and class_dropout_prob 0" : "")
             : "class_dropout_prob 0",
      rows);
  DYDIT_CHECK(!stated || stated == config.num_classes,
              "{}: {} says {} classes, but the table of labels has {} rows: {} classes and the null class",
              raw.name, raw.stated.where, stated, rows, config.num_classes);
}

// image_size counts pixels: of a latent it is a power of two larger than the input.
void check_stated_size(const RawCheckpoint& raw, const DiTConfig& config) {
  const int side = raw.stated.number("input_size"), image = raw.stated.number("image_size");
  DYDIT_CHECK(!side || side == config.input_size, "{}: {} says input_size {}, but pos_embed is for {}",
              raw.name, raw.stated.where, side, config.input_size);
  bool fits = false;
  for (int factor = 1; factor <= 64; factor *= 2) fits |= image == factor * config.input_size;
  DYDIT_CHECK(!image || fits,
              "{}: {} says image_size {}, but pos_embed is for {} (or images of {} with the usual latents)",
              raw.name, raw.stated.where, image, config.input_size, 8 * config.input_size);
}

int64_t elements_of(const WeightSet& set) {
  int64_t elements = 0;
  for (const auto& [key, view] : set.tensors) elements += view.numel();
  return elements;
}

// A few tensors told the configuration; before a model of that size is made, the file must be about as large.
void check_plausible_size(const RawCheckpoint& raw, const WeightSet& set, const DiTConfig& config) {
  const double stored = static_cast<double>(elements_of(set));
  const double C = config.hidden_size, F = config.mlp_hidden;
  const double modulation = config.modulation == Modulation::AdaLN ? 6 * C * C : 0;
  const AdapterConfig& adapter = config.adapter;
  const double adapters =
      adapter.kind == AdapterKind::None ? 0 : config.depth * (3 * C + F) * adapter.rank * adapter.experts;
  const double expected = config.depth * (4 * C * C + 2 * C * F + modulation) + C * config.num_tokens() +
                          C * config.label_rows() + 2.0 * C * config.patch_values() + adapters;
  DYDIT_CHECK(expected <= stored,
              "{}: its shapes speak of {} with at least {:.0f} parameters, but it holds {:.0f}", raw.name,
              model_name(config), expected, stored);
}

// An int8 layer with its scales.
void check_quantized(const RawCheckpoint& raw, const WeightSet& set, const DiTConfig& config,
                     const std::string& key, const at::Tensor& values, Weights& weights) {
  DYDIT_CHECK(
      raw.metadata.contains("quantization"),
      "{}: {} is int8, and no metadata 'quantization' says how it was rounded; dydit quantize writes such "
      "files",
      raw.name, key);
  DYDIT_CHECK((values != -128).all().item<bool>(),
              "{}: {} holds -128, which symmetric rounding never gives; the "
              "checkpoint is broken",
              raw.name, key);
  const std::string layer = key.substr(0, key.size() - std::string_view(".weight").size());
  const int64_t segments = input_segments(config, std::string_view(layer).substr(layer.find('.', 7) + 1));
  const auto take = [&](const std::string& name, const std::vector<int64_t>& shape, bool zero) {
    const auto found = set.tensors.find(name);
    if (found == set.tensors.end()) return false;
    const at::Tensor tensor = to_tensor(found->second, raw.memory);
    DYDIT_CHECK(tensor.sizes().equals(shape) && tensor.scalar_type() == at::kFloat,
                "{}: {} is {} of shape {}, expected F32 of shape {}", raw.name, name,
                dtype_name(found->second.dtype), shape_text(tensor.sizes()), shape_text(shape));
    DYDIT_CHECK(is_finite(tensor) && (zero ? tensor >= 0 : tensor > 0).all().item<bool>(),
                "{}: {} holds {}; the checkpoint is broken", raw.name, name,
                is_finite(tensor) ? zero ? "a negative scale" : "a factor of 0 or less" : "NaN or infinity");
    weights.emplace(name, tensor);
    return true;
  };
  DYDIT_CHECK(take(layer + ".weight.scale", {values.size(0), segments}, true),
              "{}: {} is int8 and has no {}.weight.scale", raw.name, key, layer);
  // A scale of 0 is that of zeros.
  const at::Tensor largest = values.abs().reshape({values.size(0), segments, -1}).amax(-1).to(at::kFloat);
  DYDIT_CHECK(((weights.at(layer + ".weight.scale") > 0).logical_or(largest == 0)).all().item<bool>(),
              "{}: {}.weight.scale is 0 where the weights are not; the checkpoint is broken", raw.name,
              layer);
  take(layer + ".weight.smooth", {values.size(1)}, false);
  weights.emplace(key, values);
}

}  // namespace

int Stated::number(const char* key) const {
  const auto found = config.find(key);
  if (found == config.end() || !found->is_number()) return 0;
  const auto value = found->get<double>();
  return value > 0 && value < (1 << 24) && value == std::floor(value) ? static_cast<int>(value) : 0;
}

namespace {

// SiT's words for paths, and ours.
std::optional<PathName> path_of(const std::string& text) { return kPathNames.find(lower_case(text)); }

// A checkpoint of SiT's training that names its model alone: what its scripts take by default.
bool is_named_sit(const std::string& model) {
  const std::string name = lower_case(model);
  return name.starts_with("sit-") || name.starts_with("sit_");
}

}  // namespace

std::optional<StatedObjective> stated_objective(const RawCheckpoint& raw, const CheckpointOptions& options) {
  const std::string model = stated_text(raw, "model");
  DYDIT_CHECK(!lower_case(model).starts_with("lightningdit"),
              "{}: is a LightningDiT by its name, whose blocks have parts that a SiT has not; it is not read",
              raw.name);
  std::string path = stated_text(raw, "path_type"), prediction = stated_text(raw, "prediction");
  // Anybody's args may have a path, and a prediction that is none.
  const bool ours = raw.stated.where.starts_with("metadata") || is_ours(raw);
  if (path.empty() && ours) path = stated_text(raw, "path");
  if (prediction.empty()) prediction = stated_text(raw, "prediction_type");
  const std::string word = lower_case(prediction);
  if (!ours && !kPredictionNames.find(word) && !word.starts_with("v") && word != "score") prediction.clear();
  std::string source = raw.stated.where.empty() ? "metadata" : raw.stated.where;
  const std::string said = fmt::format("{}: {} says", raw.name, source);
  if (lower_case(prediction) == "epsilon") prediction = "noise";  // diffusers' word
  if (path.empty() && is_named_sit(model)) {
    path = "linear";
    if (prediction.empty()) prediction = "velocity";
  }
  const std::optional<PathName> stated_path = path_of(path);
  const std::optional<Prediction> stated_prediction = kPredictionNames.find(lower_case(prediction));
  DYDIT_CHECK(path.empty() || stated_path, "{} path {}, but this program knows {}", said, quote(path),
              fmt::join(kPathNames.names(), ", "));
  DYDIT_CHECK(prediction.empty() || stated_prediction,
              "{} prediction {}, but this program knows noise and velocity (of a path, as SiT has it)", said,
              quote(prediction));
  const std::optional<PathName> asked_path = options.path.empty() ? stated_path : kPathNames.at(options.path);
  const std::optional<Prediction> asked_prediction =
      options.prediction.empty() ? stated_prediction : kPredictionNames.at(options.prediction);
  DYDIT_CHECK(!stated_path || asked_path == stated_path, "{} path {}, but {} is asked for; leave --path out",
              said, quote(path), options.path);
  DYDIT_CHECK(!stated_prediction || asked_prediction == stated_prediction,
              "{} prediction {}, but {} is asked for; leave --prediction out", said, quote(prediction),
              options.prediction);
  if (!asked_path && !asked_prediction) return std::nullopt;
  Objective objective;
  if (asked_path)
    objective = {asked_path->path, only_noise(*asked_path) ? Prediction::Noise : Prediction::Velocity,
                 asked_path->clock};
  if (asked_prediction) objective.prediction = *asked_prediction;
  DYDIT_CHECK(objective.clock != ModelClock::Scaled || objective.prediction == Prediction::Noise,
              "{}: predicts velocity of the path vp-999, which only noise is predicted of; SiT's is vp",
              raw.name);
  DYDIT_CHECK(objective.continuous() || objective.prediction == Prediction::Noise,
              "{}: predicts velocity, and nobody says of which path; --path linear, gvp or vp does",
              raw.name);
  if (!stated_path && !stated_prediction) source = options.path.empty() ? "--prediction" : "--path";
  if (path.empty() && objective == Objective()) return std::nullopt;  // a DiT that says so
  return StatedObjective{objective, source};
}

void add_pos_embed(RawCheckpoint& raw, WeightSet& set) {
  if (set.layout == Layout::UViT) return;  // learned
  if (set.tensors.contains("pos_embed") || !set.tensors.contains("x_embedder.proj.weight")) return;
  const auto& patches = Shapes(set, raw.name).of("x_embedder.proj.weight", 4);
  const int64_t hidden = patches[0], channels = patches[1], patch = patches[2];
  const int image = raw.stated.number("image_size");
  constexpr int kLatent = 8;  // pixels of an image for each of its latent
  int side = raw.stated.number("input_size");
  if (!side && image) side = channels == 1 || channels == 3 ? image : channels == 4 ? image / kLatent : 0;
  if (!side) return;  // the error about the missing tensor says what to do
  DYDIT_CHECK(patch > 0 && side % patch == 0, "{}: patches of {} do not divide a side of {}", raw.name, patch,
              side);
  DYDIT_CHECK(hidden > 0 && hidden % 4 == 0,
              "{}: pos_embed cannot be computed for a hidden size of {}, no multiple of 4", raw.name, hidden);
  // A small file may claim any size.
  constexpr int64_t kAlwaysFine = 1 << 21;
  const int64_t grid = side / patch;
  const auto elements = checked_numel(std::array{grid, grid, hidden});
  DYDIT_CHECK(elements && *elements <= std::max(kAlwaysFine, elements_of(set)),
              "{}: {} x {} patches of hidden size {}; no model is that large", raw.name, grid, grid, hidden);
  const at::Tensor table = sincos_pos_embed(static_cast<int>(hidden), static_cast<int>(grid)).contiguous();
  set.tensors["pos_embed"] = to_view(table);
  raw.memory = std::make_shared<const std::pair<at::Tensor, std::shared_ptr<const void>>>(table, raw.memory);
  if (raw.format != "diffusers folder")  // no such folder has it
    set.notes.push_back(
        fmt::format("pos_embed is not in the file; computed, sin-cos, for {} x {} patches ({} of {})", grid,
                    grid, raw.stated.number("input_size") ? "input_size" : "image_size", raw.stated.where));
}

namespace {

// What only some families have; the rest is a DiT's. Sizes are known.
void infer_family(const RawCheckpoint& raw, WeightSet& set, const Shapes& shapes, DiTConfig& config) {
  const auto any_block_has = [&](const char* part) {
    for (int i = 0; i < config.depth; ++i) {
      if (shapes.has(fmt::format("blocks.{}.{}", i, part))) return true;
    }
    return false;
  };
  if (any_block_has("skip_linear.weight"))
    config.join = any_block_has("skip_norm.weight") ? Join::Normed : Join::Plain;
  if (config.join == Join::Normed && is_ours(raw) && raw.stated.config.contains("skip")) {
    DYDIT_CHECK(raw.stated.config["skip"] == "residual", "{}: skip is {}; residual or nothing is wanted",
                raw.name, printable(json_text(raw.stated.config["skip"]), 40));
    config.join = Join::Residual;
  }
  if (set.layout != Layout::UViT && !any_block_has("norm1.weight")) return;
  DYDIT_CHECK(config.hidden_size % 2 == 0,
              "{}: a U-ViT of hidden size {}: the embedding of its time takes an even one", raw.name,
              config.hidden_size);
  config = with_uvit(config);
  config.qkv_bias = any_block_has("attn.qkv.bias");
  config.time_mlp = shapes.has("t_embedder.mlp.0.weight");
  config.output_conv = shapes.has("final_conv.weight");
  if (!shapes.has("y_embedder.embedding_table.weight")) {
    config.num_classes = 0;
    return;
  }
  // A table of as many rows as a data set has classes holds no null class, and nothing else can tell.
  const auto rows = static_cast<int>(shapes.of("y_embedder.embedding_table.weight", 2)[0]);
  constexpr std::array kClassCounts = {10, 100, 1000};
  const auto stated = raw.stated.config.find("null_class");
  config.has_null_class =
      stated != raw.stated.config.end() && stated->is_boolean()
          ? stated->get<bool>()
          : std::find(kClassCounts.begin(), kClassCounts.end(), rows) == kClassCounts.end();
  config.num_classes = rows - config.has_null_class;
  set.notes.push_back(
      config.has_null_class
          ? fmt::format("{} rows of labels: {} classes and the null class", rows, rows - 1)
          : fmt::format("{} rows of labels: classes alone, without a null class for guidance", rows));
}

// Levels of patch sizes; where the file does not say when they were trained, at all times.
void infer_levels(const RawCheckpoint& raw, const Shapes& shapes, DiTConfig& config) {
  std::vector<int> level_from;
  const auto has = [&](size_t level) {
    return shapes.has(fmt::format("levels.{}.x_embedder.proj.weight", level));
  };
  while (level_from.size() < kMostLevels && has(level_from.size() + 1)) level_from.push_back(0);
  const auto said = raw.stated.config.find("level_from");
  const bool is_said = said != raw.stated.config.end();
  if (level_from.empty() && !(is_said && is_ours(raw))) return;
  if (is_said) {
    DYDIT_CHECK(
        said->is_array() && said->size() == level_from.size() &&
            std::all_of(said->begin(), said->end(),
                        [](const json& t) { return t.is_number_unsigned() && t < kNumTrainTimesteps; }),
        "{}: level_from is {}; its tensors have {} levels beside the first, and a time from 0 to {} "
        "of each is wanted",
        raw.name, printable(json_text(*said), 60), level_from.size(), kNumTrainTimesteps - 1);
    level_from = said->get<std::vector<int>>();
  }
  try {
    check_levels(config, level_from);
  } catch (const UsageError& error) {
    throw Error(fmt::format("{}: holds {}", raw.name, error.what()));
  }
  config.level_from = level_from;
}

// Kind and sizes by names and shapes; the scale, which no tensor tells, by the metadata 'adapter'.
AdapterConfig infer_adapter(const RawCheckpoint& raw, const WeightSet& set, const Shapes& shapes) {
  const std::string A = "blocks.0.attn.qkv.lora.A", B = "blocks.0.attn.qkv.lora.B";
  if (!shapes.has(A)) {
    DYDIT_CHECK(!is_ours(raw) || !raw.metadata.contains("adapter"),
                "{}: metadata 'adapter' speaks of adapters, but tensor {} is missing", raw.name, A);
    return {};
  }
  const std::optional<StatedAdapter> stated = stated_adapter(raw);
  DYDIT_CHECK(
      stated,
      "{}: holds {}, but no metadata 'adapter' says how adapters are scaled; dydit finetune --adapter "
      "writes such files",
      raw.name, A);
  const bool on_A = set.tensors.at(A).shape.size() == 3;
  const auto& of_A = shapes.of(A, on_A ? 3 : 2);
  AdapterConfig found = stated->config;
  found.kind = shapes.has("blocks.0.lora_alpha.weight") ? AdapterKind::TdLora : AdapterKind::Lora;
  found.mix = on_A ? AdapterMix::A : AdapterMix::B;
  found.rank = static_cast<int>(of_A[on_A ? 1 : 0]);
  found.experts = static_cast<int>(on_A ? of_A[0] : shapes.of(B, 3)[0]);
  DYDIT_CHECK(found == stated->config, "{}: metadata 'adapter' says {}, but its tensors are those of {}",
              raw.name, adapter_text(stated->config), adapter_text(found));
  return found;
}

}  // namespace

DiTConfig infer_config(const RawCheckpoint& raw, WeightSet& set, const CheckpointOptions& options) {
  const std::string& name = raw.name;
  const Shapes shapes(set, name);
  DiTConfig config;
  const auto& patch = shapes.of("x_embedder.proj.weight", 4);
  config.hidden_size = static_cast<int>(patch[0]);
  config.in_channels = static_cast<int>(patch[1]);
  config.patch_size = static_cast<int>(patch[2]);
  DYDIT_CHECK(patch[2] == patch[3], "{}: {} has shape {}, expected a square patch", name,
              shapes.in_file("x_embedder.proj.weight"), shape_text(patch));
  config.depth = count_blocks(set.tensors, Layout::DiT, name);
  if (config.depth == 0) shapes.fail_missing("blocks.0.attn.qkv.weight");
  if (!shapes.has("pos_embed"))
    shapes.fail_missing(
        "pos_embed",
        set.layout == Layout::UViT
            ? ""
            : " It is the sin-cos table of the patches, which is computed where args, cfg or config "
              "say image_size or input_size");
  infer_family(raw, set, shapes, config);
  config.adapter = infer_adapter(raw, set, shapes);
  const int64_t tokens = shapes.of("pos_embed", 3)[1] - config.extras();
  constexpr int64_t kMaxPatchSide = 1 << 10;
  DYDIT_CHECK(patch[2] <= kMaxPatchSide && patch[1] <= kMaxPatchSide,
              "{}: {} has shape {}; no model has such patches", name,
              shapes.in_file("x_embedder.proj.weight"), shape_text(patch));
  const int grid =
      static_cast<int>(std::lround(std::sqrt(static_cast<double>(std::max<int64_t>(tokens, 0)))));
  DYDIT_CHECK(int64_t{grid} * grid == tokens && grid > 0,
              "{}: pos_embed holds {} tokens{}, expected a square", name, tokens,
              config.extras() > 0
                  ? fmt::format(" beside those of {}", config.extras() > 1 ? "label and time" : "time")
                  : "");
  config.input_size = grid * config.patch_size;
  config.mlp_hidden = static_cast<int>(shapes.of("blocks.0.mlp.fc1.weight", 2)[0]);
  if (!config.time_token)
    config.num_classes = static_cast<int>(shapes.of("y_embedder.embedding_table.weight", 2)[0]) - 1;
  const int64_t outputs = shapes.of("final_layer.linear.weight", 2)[0];
  DYDIT_CHECK(config.hidden_size > 0 && config.in_channels > 0 && config.patch_size > 0 &&
                  (config.num_classes > 0 || config.time_token) && config.mlp_hidden > 0,
              "{}: a tensor has a dimension of size 0", name);
  DYDIT_CHECK(outputs == config.patch_values() || outputs == 2 * config.patch_values(),
              "{}: {} has {} rows, expected patch*patch*channels = {} or twice that", name,
              shapes.in_file("final_layer.linear.weight"), outputs, config.patch_values());
  config.learn_sigma = outputs == 2 * config.patch_values();
  if (config.objective.continuous()) config.drops_variance = config.learn_sigma;
  config.width_routers = shapes.has("blocks.0.attn_rate.router.weight");
  config.token_routers = shapes.has("blocks.0.token_selection.mlp_head.0.weight");
  if (const auto scope = raw.stated.config.find("token_scope");
      scope != raw.stated.config.end() && is_ours(raw)) {
    const auto known = kTokenScopeNames.find(scope->is_string() ? scope->get<std::string>() : "");
    DYDIT_CHECK(known && config.token_routers,
                "{}: token_scope is {}; mlp or block is wanted, of token routers", name,
                printable(json_text(*scope), 40));
    config.token_scope = *known;
  }
  config.num_heads = infer_num_heads(raw, shapes, config, options.num_heads);
  DYDIT_CHECK(config.mlp_hidden % config.num_heads == 0,
              "{}: {} MLP channels cannot be cut into {} equal groups", name, config.mlp_hidden,
              config.num_heads);
  if (config.time_token) {
    DYDIT_CHECK((options.path.empty() || kPathNames.at(options.path).clock == ModelClock::Scaled) &&
                    options.prediction != "velocity",
                "{}: is a U-ViT, which predicts {}; leave --path and --prediction out", name,
                objective_text(config.objective));
    const std::optional<StatedObjective> stated = stated_objective(raw, options);
    constexpr int kHugeDepth = 29, kHugeSize = 1152;  // U-ViT-H as published
    DYDIT_CHECK(
        config.depth != kHugeDepth || config.hidden_size != kHugeSize || stated,
        "{}: is of U-ViT-H's size, whose published models were trained on 1000 discrete steps, which are not "
        "read; --path vp-999 takes it for one of continuous time",
        name);
    DYDIT_CHECK(!stated || stated->objective == config.objective,
                "{}: is a U-ViT, which predicts {}; {} says {}", name, objective_text(config.objective),
                stated->source, objective_text(stated->objective));
    return config;
  }
  const std::optional<StatedObjective> stated = stated_objective(raw, options);
  config = with_semantics(config, stated_semantics(raw));
  if (stated) config = with_objective(config, stated->objective);
  infer_levels(raw, shapes, config);
  return config;
}

void check_stated(const RawCheckpoint& raw, const WeightSet& set, const DiTConfig& config) {
  const Stated& stated = raw.stated;
  // U-ViT's own depth leaves out the block in the middle; ours, of a file with its names, does not.
  const bool halves = set.layout == Layout::UViT && stated.number("depth") == config.depth - 1;
  for (const auto& [key, of_tensors] : {std::pair{"depth", halves ? config.depth - 1 : config.depth},
                                        {"hidden_size", config.hidden_size},
                                        {"patch_size", config.patch_size},
                                        {"in_channels", config.in_channels}}) {
    const int said = stated.number(key);
    DYDIT_CHECK(!said || said == of_tensors,
                "{}: {} says {} {}, but its tensors are of {}; one of the two is of "
                "another model",
                raw.name, stated.where, key, said, of_tensors);
  }
  const auto ratio = stated.config.find("mlp_ratio");
  if (ratio != stated.config.end() && ratio->is_number()) {
    DYDIT_CHECK(std::abs(ratio->get<double>() * config.hidden_size - config.mlp_hidden) < 1,
                "{}: {} says mlp_ratio {}, but the MLPs have {} channels for a hidden size of {}", raw.name,
                stated.where, ratio->get<double>(), config.mlp_hidden, config.hidden_size);
  }
  const auto sigma = stated.config.find("learn_sigma");
  DYDIT_CHECK(
      sigma == stated.config.end() || !sigma->is_boolean() || sigma->get<bool>() == config.learn_sigma,
      "{}: {} says learn_sigma {}, but final_layer.linear.weight has {} outputs a patch, of {} channels",
      raw.name, stated.where, sigma->get<bool>(),
      config.patch_size * config.patch_size * config.out_channels(), config.in_channels);
  check_stated_size(raw, config);
  check_stated_classes(raw, config);
  check_named_size(raw, config);
}

Weights check_weights(const RawCheckpoint& raw, const WeightSet& set, const DiTConfig& config) {
  const std::string& name = raw.name;
  check_plausible_size(raw, set, config);
  const Shapes shapes(set, name);
  const DiT model = DiT(config);  // uninitialised: only its names and shapes are read
  Weights weights;
  for (const auto& expected : model->named_parameters()) {
    const auto& shape = shapes.of(expected.key(), expected.value().dim());
    DYDIT_CHECK(expected.value().sizes().equals(shape), "{}: {} has shape {}, expected {} for {}", name,
                shapes.in_file(expected.key()), shape_text(shape), shape_text(expected.value().sizes()),
                model_name(config));
    const TensorView& view = set.tensors.at(expected.key());
    const at::Tensor tensor = to_tensor(view, raw.memory);
    if (tensor.scalar_type() == at::kChar && is_block_layer(expected.key()) &&
        expected.key().ends_with(".weight")) {
      check_quantized(raw, set, config, expected.key(), tensor, weights);
      continue;
    }
    DYDIT_CHECK(at::isFloatingType(tensor.scalar_type()), "{}: {} is {}, expected a floating-point tensor",
                name, shapes.in_file(expected.key()), dtype_name(view.dtype));
    DYDIT_CHECK(is_finite(tensor), "{}: {} holds NaN or infinity; the checkpoint is broken", name,
                shapes.in_file(expected.key()));
    weights.emplace(expected.key(), tensor);
  }
  for (const auto& [key, view] : set.tensors) {
    if (!weights.contains(key))
      throw NotWhole(fmt::format("{}: tensor {} belongs to no part of {}.{}", name,
                                 printable(shapes.in_file(key)), model_name(config),
                                 guess_model(set.tensors)));
  }
  return weights;
}

}  // namespace dydit
