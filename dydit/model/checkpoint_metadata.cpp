// What stands beside the weights: ours is checked, what other programs put there is noted and kept.
#include <algorithm>
#include <array>
#include <cmath>

#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/io/json.h"
#include "dydit/io/json_object.h"
#include "dydit/io/text.h"
#include "dydit/model/checkpoint_parts.h"
#include "dydit/model/quantization.h"

namespace dydit {
namespace {

using nlohmann::json;

json parse_or_throw(const std::string& where, const std::string& key, const std::string& text) {
  std::optional<json> value = parse_metadata(text);
  DYDIT_CHECK(value, "{}: metadata '{}' is not JSON of at most {} levels: {}", where, key, kMetadataDepth,
              printable(text, 60));
  return *std::move(value);
}

// One kind of part: a list of `blocks` lists of counts within 1..largest(block), one a region of t.
template <typename Largest>
std::vector<KeepCounts::PerRegion> parse_counts(const json& counts, const char* kind, size_t blocks,
                                                const Largest& largest_of, int regions,
                                                const std::string& name) {
  const auto found = counts.is_object() ? counts.find(kind) : counts.end();
  DYDIT_CHECK(found != counts.end() && found->is_array() && found->size() == blocks,
              "{}: metadata 'keep_counts' must hold {} lists of '{}'", name, blocks, kind);
  std::vector<KeepCounts::PerRegion> result;
  for (const json& block : *found) {
    DYDIT_CHECK(block.is_array() && block.size() == static_cast<size_t>(regions),
                "{}: 'keep_counts' of '{}' must be lists of {}", name, kind, regions);
    KeepCounts::PerRegion kept(regions);
    const int largest = largest_of(result.size());
    for (int q = 0; q < regions; ++q) {
      DYDIT_CHECK(block[q].is_number_integer() && block[q] >= 1 && block[q] <= largest,
                  "{}: 'keep_counts' of '{}' holds {}, expected 1 to {}", name, kind,
                  printable(json_text(block[q]), 40), largest);
      kept[q] = block[q].get<int>();
    }
    result.push_back(kept);
  }
  return result;
}

KeepCounts parse_keep_counts(const json& counts, int regions, const DiTConfig& config,
                             const std::string& name) {
  const size_t blocks = size_t{1} * config.depth * config.levels(),
               width_blocks = config.width_routers ? blocks : 0,
               token_blocks = config.token_routers ? blocks : 0;
  const auto heads = [&](size_t) { return config.num_heads; };
  const auto tokens = [&](size_t block) { return config.num_tokens(static_cast<int>(block) / config.depth); };
  return {parse_counts(counts, "heads", width_blocks, heads, regions, name),
          parse_counts(counts, "groups", width_blocks, heads, regions, name),
          parse_counts(counts, "tokens", token_blocks, tokens, regions, name)};
}

// A name becomes a line of a log, a file's text and a word of a command.
void check_class_names(const std::vector<std::string>& names, const std::string& where) {
  constexpr size_t kLongest = 1024;
  for (size_t i = 0; i < names.size(); ++i) {
    DYDIT_CHECK(
        names[i].size() <= kLongest && printable(names[i], names[i].npos) == names[i],
        "{}: the name of class {} is {}; a name is UTF-8 without control characters, of at most {} bytes",
        where, i, quote(names[i]), kLongest);
  }
}

std::vector<std::string> parse_class_names(const std::string& text, int num_classes,
                                           const std::string& name) {
  const json names = parse_or_throw(name, "class_names", text);
  const bool strings = names.is_array() && std::all_of(names.begin(), names.end(),
                                                       [](const json& entry) { return entry.is_string(); });
  DYDIT_CHECK(strings && names.size() == static_cast<size_t>(num_classes),
              "{}: metadata 'class_names' must be a JSON list of {} strings", name, num_classes);
  auto result = names.get<std::vector<std::string>>();
  check_class_names(result, name);
  return result;
}

double parse_lambda(const std::string& text, const std::string& name) {
  const json number = parse_or_throw(name, "lambda", text);
  DYDIT_CHECK(number.is_number(), "{}: metadata 'lambda' is not a number: {}", name, printable(text, 60));
  return number.get<double>();
}

// Wrong, it would choose other parts than the model was made for: an error whoever wrote it.
void read_gate_rule(const RawCheckpoint& raw, const std::string& rule, Checkpoint& checkpoint) {
  const auto known = kGateRuleNames.find(rule);
  DYDIT_CHECK(known, "{}: gate rule '{}', but this program knows {}", raw.name, printable(rule, 60),
              fmt::join(kGateRuleNames.names(), ", "));
  if (known != GateRule::Capacity) return;
  const auto counts = raw.metadata.find("keep_counts");
  DYDIT_CHECK(counts != raw.metadata.end(), "{}: gate rule 'capacity' without metadata 'keep_counts'",
              raw.name);
  int regions = kQuarters;
  if (const auto stated = raw.metadata.find("regions"); stated != raw.metadata.end()) {
    const auto number = parse_number<int>(stated->second);
    DYDIT_CHECK(number && is_regions(*number),
                "{}: metadata 'regions' is {}; a number from 1 to {} that divides {} is wanted", raw.name,
                printable(stated->second, 40), kMostRegions, kNumTrainTimesteps);
    regions = *number;
  }
  checkpoint.keep_counts = parse_keep_counts(parse_or_throw(raw.name, "keep_counts", counts->second), regions,
                                             checkpoint.config, raw.name);
}

Quantization parse_quantization(const std::string& text, const std::string& name) {
  const json stated = parse_or_throw(name, "quantization", text);
  DYDIT_CHECK(stated.is_object(), "{}: metadata 'quantization' is {}; an object {{...}} is wanted", name,
              printable(json_text(stated), 40));
  // Before all else: another version may have other keys.
  const json scheme = stated.value("scheme", json()), version = stated.value("version", json());
  DYDIT_CHECK(scheme == kQuantizationScheme && is_whole(version, kQuantizationVersion),
              "{}: quantised by scheme {}, version {}, but this program reads {}, version {}", name,
              printable(json_text(scheme), 40), printable(json_text(version), 40), kQuantizationScheme,
              kQuantizationVersion);
  static const std::vector<std::string> kKeys = {"scheme", "version", "smoothing",
                                                 "images", "seed",    "parent_sha256"};
  const JsonObject in(stated, name + ": metadata 'quantization'", kKeys);
  const json &smoothing = in.get("smoothing"), &seed = in.get("seed");
  DYDIT_CHECK(smoothing.is_number() && smoothing >= 0 && smoothing <= 1,
              "{}: smoothing is {}; a number from 0 to 1 is wanted", in.at(), shown(smoothing));
  DYDIT_CHECK(seed.is_number_unsigned(), "{}: seed is {}; a whole number from 0 is wanted", in.at(),
              shown(seed));
  return {smoothing.get<double>(), in.whole("images", 0), seed.get<uint64_t>(),
          in.text(in.get("parent_sha256"), "parent_sha256")};
}

constexpr const char* kFewStepKind = "lcm";

FewStep parse_few_step(const std::string& text, const DiTConfig& config, const std::string& name) {
  const json stated = parse_or_throw(name, "few_step", text);
  DYDIT_CHECK(stated.is_object(), "{}: metadata 'few_step' is {}; an object {{...}} is wanted", name,
              printable(json_text(stated), 40));
  // Before all else: another kind has other keys.
  const json kind = stated.value("kind", json());
  DYDIT_CHECK(kind == kFewStepKind, "{}: distilled to few steps as {}, but this program samples {}", name,
              printable(json_text(kind), 40), kFewStepKind);
  static const std::vector<std::string> kKeys = {"kind", "timesteps", "guidance"};
  const JsonObject in(stated, name + ": metadata 'few_step'", kKeys);
  DYDIT_CHECK(!config.objective.continuous(), "{}: is of a model of the 1000 betas, this one is a {}",
              in.at(), model_name(config));
  const json &timesteps = in.get("timesteps"), &guidance = in.get("guidance");
  DYDIT_CHECK(guidance.is_number() && guidance >= 1, "{}: guidance is {}; a number from 1 on is wanted",
              in.at(), shown(guidance));
  DYDIT_CHECK(timesteps.is_array() && !timesteps.empty(), "{}: timesteps is {}; a list of some is wanted",
              in.at(), shown(timesteps));
  FewStep few_step = {kFewStepKind, {}, guidance.get<double>()};
  for (const json& t : timesteps) {
    const int below = few_step.timesteps.empty() ? kNumTrainTimesteps : few_step.timesteps.back();
    DYDIT_CHECK(t.is_number_integer() && t >= 0 && t < below,
                "{}: timesteps hold {}; whole numbers that descend, from 999 down to 0, are wanted", in.at(),
                shown(t));
    few_step.timesteps.push_back(t.get<int>());
  }
  return few_step;
}

// Keys that metadata_of writes; others are notes.
constexpr std::array kOwnKeys = {"format",      "dydit_format", "config",  "parent_sha256",
                                 "gate_rule",   "keep_counts",  "regions", "lambda",
                                 "class_names", "quantization", "adapter", "few_step"};

// The oldest that says all there is: readers of an older one would sample nonsense.
int format_of(const Checkpoint& checkpoint) {
  const bool regions = checkpoint.keep_counts && checkpoint.keep_counts->regions() != kQuarters;
  const DiTConfig& config = checkpoint.config;
  return config.levels() > 1 || config.token_scope != TokenScope::Mlp || config.join == Join::Residual ||
                 config.adapter.kind != AdapterKind::None || checkpoint.few_step || regions
             ? kDyditFormat
             : 1;
}

}  // namespace

std::optional<json> parse_metadata(const std::string& text) { return parse_json(text, kMetadataDepth); }

bool is_ours(const RawCheckpoint& raw) { return raw.metadata.contains("dydit_format"); }

void check_format(const RawCheckpoint& raw) {
  const auto found = raw.metadata.find("dydit_format");
  const std::optional<int> stated =
      found != raw.metadata.end() ? parse_number<int>(found->second) : std::optional(kDyditFormat);
  DYDIT_CHECK(stated && *stated >= 1 && *stated <= kDyditFormat,
              "{}: dydit_format {}, but this program reads 1 to {}; use a newer dydit", raw.name,
              printable(found->second, 60), kDyditFormat);
}

std::optional<StatedAdapter> stated_adapter(const RawCheckpoint& raw) {
  const auto found = raw.metadata.find("adapter");
  if (found == raw.metadata.end()) return std::nullopt;
  const json stated = parse_or_throw(raw.name, "adapter", found->second);
  static const std::vector<std::string> kKeys = {"kind", "rank", "experts", "scale", "mix", "base_sha256"};
  const JsonObject in(stated, raw.name + ": metadata 'adapter'", kKeys);
  const auto word = [&](const char* key, const auto& names) {
    const auto value = names.find(in.text(in.get(key), key));
    DYDIT_CHECK(value, "{}: {} is {}; {} is wanted", in.at(), key, shown(in.get(key)),
                fmt::join(names.names(), " or "));
    return *value;
  };
  constexpr int kMost = 1 << 16;
  StatedAdapter result;
  result.config = {word("kind", kAdapterNames), in.whole("rank", 1, kMost), in.whole("experts", 1, kMost), 1,
                   word("mix", kAdapterMixNames)};
  const AdapterConfig& sizes = result.config;
  DYDIT_CHECK(sizes.kind == AdapterKind::TdLora ? sizes.experts > 1
                                                : sizes.experts == 1 && sizes.mix == AdapterMix::A,
              "{}: {} of {} experts on {}; TD-LoRA (our form) has two or more, LoRA one, on A", in.at(),
              kAdapterNames[sizes.kind], sizes.experts, kAdapterMixNames[sizes.mix]);
  const json& scale = in.get("scale");
  DYDIT_CHECK(scale.is_number() && std::isfinite(scale.get<double>()), "{}: scale is {}; a number is wanted",
              in.at(), shown(scale));
  result.config.scale = scale.get<double>();
  result.base = in.text(in.get("base_sha256"), "base_sha256");
  return result;
}

void read_metadata(const RawCheckpoint& raw, Checkpoint& checkpoint) {
  const DiTConfig& config = checkpoint.config;
  check_class_names(raw.class_names, raw.name);
  checkpoint.class_names = raw.class_names;
  const auto read = [&](const std::string& key, const std::string& value) {
    if (key == "gate_rule" && (config.is_dynamic() || is_ours(raw))) read_gate_rule(raw, value, checkpoint);
    if (key == "quantization") checkpoint.quantization = parse_quantization(value, raw.name);
    if (key == "few_step") checkpoint.few_step = parse_few_step(value, config, raw.name);
    if (key == "lambda") checkpoint.lambda = parse_lambda(value, raw.name);
    if (key == "class_names") checkpoint.class_names = parse_class_names(value, config.num_classes, raw.name);
  };
  const bool adapted = config.adapter.kind != AdapterKind::None;
  if (adapted) checkpoint.adapter_base = stated_adapter(raw)->base;
  for (const auto& [key, value] : raw.metadata) {
    const bool own = std::find(kOwnKeys.begin(), kOwnKeys.end(), key) != kOwnKeys.end();
    if (!own || (key == "adapter" && !adapted)) {
      checkpoint.notes[key] = value;
      continue;
    }
    try {
      read(key, value);
    } catch (const Error& error) {
      if (is_ours(raw) || key == "gate_rule") throw;
      const std::string said(error.what() + raw.name.size() + 2);  // the line names the file itself
      checkpoint.read_notes.push_back(said + "; passed over, it is of another program");
    }
  }
}

std::map<std::string, std::string> metadata_of(const Checkpoint& checkpoint) {
  std::map<std::string, std::string> metadata = checkpoint.notes;
  metadata["format"] = "pt";
  metadata["dydit_format"] = std::to_string(format_of(checkpoint));
  metadata["config"] = config_to_json(checkpoint.config).dump();
  metadata["parent_sha256"] = checkpoint.sha256;
  if (checkpoint.config.is_dynamic()) metadata["gate_rule"] = kGateRuleNames[checkpoint.gate_rule()];
  if (checkpoint.keep_counts) {
    metadata["keep_counts"] = json({{"heads", checkpoint.keep_counts->heads},
                                    {"groups", checkpoint.keep_counts->groups},
                                    {"tokens", checkpoint.keep_counts->tokens}})
                                  .dump();
    const int regions = checkpoint.keep_counts->regions();
    if (regions != kQuarters) metadata["regions"] = std::to_string(regions);
  }
  if (const AdapterConfig& adapter = checkpoint.config.adapter; adapter.kind != AdapterKind::None) {
    metadata["adapter"] = json({{"kind", kAdapterNames[adapter.kind]},
                                {"rank", adapter.rank},
                                {"experts", adapter.experts},
                                {"scale", adapter.scale},
                                {"mix", kAdapterMixNames[adapter.mix]},
                                {"base_sha256", checkpoint.adapter_base}})
                              .dump();
  }
  if (const auto& how = checkpoint.quantization) {
    metadata["quantization"] = json({{"scheme", kQuantizationScheme},
                                     {"version", kQuantizationVersion},
                                     {"smoothing", how->smoothing},
                                     {"images", how->images},
                                     {"seed", how->seed},
                                     {"parent_sha256", how->parent_sha256}})
                                   .dump();
  }
  if (const auto& few = checkpoint.few_step) {
    metadata["few_step"] =
        json({{"kind", few->kind}, {"timesteps", few->timesteps}, {"guidance", few->guidance}}).dump();
  }
  if (checkpoint.lambda) metadata["lambda"] = json(*checkpoint.lambda).dump();
  if (!checkpoint.class_names.empty()) metadata["class_names"] = json(checkpoint.class_names).dump();
  return metadata;
}

}  // namespace dydit
