// Plan files, both ways. Reading is strict: an unknown key is an error, since a misspelt one would be a
// choice that is silently not made.
#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "dydit/io/json_object.h"
#include "dydit/io/text.h"
#include "dydit/plan/plan_spec.h"
#include "dydit/plan/stated_plan.h"

namespace dydit {
namespace {

using Json = nlohmann::json;

constexpr int kVersion = 1;
constexpr size_t kMaxBytes = 1 << 20;
constexpr int kMaxDepth = 8;
constexpr int kLargestSize = 1 << 16;  // that a plan without a model may state
constexpr char kComputeSign = 'c', kSkippedSign = '-';
constexpr std::string_view kReuse = "reuse:";

const std::array<std::string, 15> kTopKeys = {
    "levels", "path",    "dydit_plan", "name",      "depth", "num_heads",    "num_tokens", "forecast",
    "steps",  "sampler", "eta",        "cfg_scale", "mode",  "model_sha256", "note"};
const std::array<std::string, 11> kStepKeys = {"t",       "attn",  "mlp",    "ranges", "guide", "scale",
                                               "restart", "heads", "groups", "tokens", "level"};
const std::array<std::string, 4> kRangeKeys = {"from", "to", "order", "absolute"};

std::vector<Action> parse_actions(const JsonObject& step, const char* key) {
  std::vector<Action> actions;
  const std::string text = step.text(step.get(key), key);
  for (const char c : text) {
    const bool digit = c >= '0' && c <= '9';
    DYDIT_CHECK(digit || c == kComputeSign || c == kSkippedSign,
                "{}: {} is {}: {} is no action; c, 0 to {} and - are known", step.at(), key, quote(text),
                quote(std::string_view(&c, 1)), kMaxOrder);
    DYDIT_CHECK(!digit || c - '0' <= kMaxOrder, "{}: {} is {}: order {} is above {}", step.at(), key,
                quote(text), c, kMaxOrder);
    actions.push_back(digit ? static_cast<Action>(c - '0') : c == kComputeSign ? kCompute : kSkipped);
  }
  return actions;
}

std::vector<RangeSkip> parse_ranges(const JsonObject& step) {
  std::vector<RangeSkip> ranges;
  const Json* value = step.find("ranges");
  if (!value) return ranges;
  for (const Json& entry : step.list(*value, "ranges")) {
    const JsonObject range(entry, step.at() + ": ranges", kRangeKeys);
    ranges.push_back({range.whole("from"), range.whole("to"), range.whole("order"), range.truth("absolute")});
  }
  std::stable_sort(ranges.begin(), ranges.end(),
                   [](const RangeSkip& a, const RangeSkip& b) { return a.from < b.from; });
  return ranges;
}

void parse_guide(const JsonObject& in, StepSpec& step) {
  const std::string word = in.text("guide").value_or("full");
  if (word == "full") return;
  if (word == "off" || word == "weak") {
    step.guide = word == "off" ? GuideKind::Off : GuideKind::Weak;
    return;
  }
  const auto order = word.starts_with(kReuse)
                         ? parse_number<int>(std::string_view(word).substr(kReuse.size()))
                         : std::nullopt;
  DYDIT_CHECK(order && *order >= 0 && *order <= kMaxOrder,
              "{}: guide is {}; full, off, weak or reuse:0 to reuse:{} are known", in.at(), quote(word),
              kMaxOrder);
  step.guide = GuideKind::Forecast;
  step.guide_order = *order;
}

std::vector<std::vector<uint8_t>> parse_parts(const JsonObject& step, const char* key) {
  std::vector<std::vector<uint8_t>> parts;
  const Json* value = step.find(key);
  if (!value) return parts;
  for (const Json& entry : step.list(*value, key)) {
    const std::string text = step.text(entry, key);
    DYDIT_CHECK(!text.empty() && text.find_first_not_of("01") == text.npos,
                "{}: {} holds {}; a text of 0 and 1, one a part, is wanted", step.at(), key, quote(text));
    parts.emplace_back();
    for (const char c : text) parts.back().push_back(c == '1');
  }
  DYDIT_CHECK(!parts.empty(), "{}: {} is empty; leave it out, or say every block", step.at(), key);
  return parts;
}

std::vector<int> parse_tokens(const JsonObject& step, const DiTConfig& config, int level) {
  const Json* value = step.find("tokens");
  if (!value) return {};
  if (*value == "router") return std::vector<int>(config.depth, -1);
  if (*value == "all") return std::vector<int>(config.depth, config.num_tokens(level));
  DYDIT_CHECK(value->is_array() && !value->empty(),
              "{}: tokens is {}; \"router\", \"all\" or a list of counts is wanted", step.at(),
              shown(*value));
  std::vector<int> counts;
  for (const Json& entry : *value) {
    counts.push_back(step.whole(entry, "tokens"));
    DYDIT_CHECK(counts.back() >= 1, "{}: tokens holds {}; 1 to {} may be kept", step.at(), counts.back(),
                config.num_tokens(level));
  }
  return counts;
}

double parse_time(const JsonObject& step) {
  const Json& value = step.get("t");
  DYDIT_CHECK(value.is_number(), "{}: t is {}; a number is wanted", step.at(), shown(value));
  return value.get<double>();
}

StepSpec parse_step(const Json& value, size_t number, const DiTConfig& config, const std::string& name) {
  const bool continuous = config.objective.continuous();
  const bool has_t = value.is_object() && value.contains("t") &&
                     (continuous ? value["t"].is_number() : value["t"].is_number_integer());
  const JsonObject in(value,
                      has_t ? fmt::format("{}: step t = {}", name, shown(value["t"]))
                            : fmt::format("{}: step {}", name, number),
                      kStepKeys);
  StepSpec step{.timestep = continuous ? parse_time(in) : in.whole("t"),
                .level = in.find("level") ? in.whole("level", 0, config.levels() - 1) : 0,
                .attn = parse_actions(in, "attn"),
                .mlp = parse_actions(in, "mlp")};
  step.ranges = parse_ranges(in);
  parse_guide(in, step);
  step.scale = in.real("scale");
  step.restart = in.truth("restart");
  step.heads = parse_parts(in, "heads");
  step.groups = parse_parts(in, "groups");
  step.tokens = parse_tokens(in, config, step.level);
  return step;
}

void check_size(const JsonObject& top, const char* key, int wanted) {
  const int value = top.whole(key);
  DYDIT_CHECK(value == wanted, "{}: {} is {}, but the model's is {}; is the plan of another model?", top.at(),
              key, value, wanted);
}

// Of the square of tokens.
int stated_side(const JsonObject& top) {
  const int tokens = top.whole("num_tokens", 1, kLargestSize);
  const int side = static_cast<int>(std::lround(std::sqrt(tokens)));
  DYDIT_CHECK(side * side == tokens, "{}: num_tokens is {}; the tokens of an image are a square", top.at(),
              tokens);
  return side;
}

Forecast parse_kind(const JsonObject& top) {
  try {
    return parse_forecast(top.text("forecast").value_or("taylor"));
  } catch (const UsageError& error) {
    throw Error(fmt::format("{}: {}", top.at(), error.what()));
  }
}

Json read_plan_json(std::string_view text, const std::string& name) {
  DYDIT_CHECK(text.size() <= kMaxBytes, "{}: a plan of {} bytes; at most {} are read", name, text.size(),
              kMaxBytes);
  return read_json(text, kMaxDepth, name);
}

JsonObject plan_object(const Json& json, const std::string& name) {
  DYDIT_CHECK(json.is_object() && json.contains("dydit_plan"),
              "{}: is no plan: an object with dydit_plan is wanted (docs/formats.md)", name);
  DYDIT_CHECK(is_whole(json["dydit_plan"], kVersion),
              "{}: dydit_plan is {}, but this program reads {}; use a newer dydit", name,
              shown(json["dydit_plan"]), kVersion);
  return {json, name, kTopKeys};
}

// All but the sizes.
PlanSpec parse_steps(const JsonObject& top, const DiTConfig& config, const std::string& name) {
  PlanSpec spec{.name = top.text("name").value_or(""), .forecast = parse_kind(top)};
  const Json& steps = top.list(top.get("steps"), "steps");
  for (size_t i = 0; i < steps.size(); ++i) spec.steps.push_back(parse_step(steps[i], i + 1, config, name));
  std::reverse(spec.steps.begin(), spec.steps.end());
  spec.note = top.text("note").value_or("");
  spec.sampler = top.text("sampler");
  spec.mode = top.text("mode");
  spec.model_sha256 = top.text("model_sha256");
  spec.eta = top.real("eta");
  spec.cfg_scale = top.real("cfg_scale");
  return spec;
}

// Writing: pieces of JSON.

std::string in_quotes(std::string_view text) { return json_text(Json(text)); }

std::string quoted_actions(std::span<const Action> actions) {
  std::string text;
  for (const Action action : actions)
    text += action == kCompute   ? kComputeSign
            : action == kSkipped ? kSkippedSign
                                 : static_cast<char>('0' + action);
  return in_quotes(text);
}

template <typename T, typename Piece>
std::string list_text(std::span<const T> values, const Piece& piece) {
  std::string text;
  for (const T& value : values) text += (text.empty() ? "" : ", ") + piece(value);
  return "[" + text + "]";
}

std::string parts_text(const std::vector<std::vector<uint8_t>>& parts) {
  return list_text(std::span(parts), [](const std::vector<uint8_t>& block) {
    std::string text;
    for (const uint8_t on : block) text += on ? '1' : '0';
    return in_quotes(text);
  });
}

std::string tokens_text(const std::vector<int>& tokens, int all_tokens) {
  const auto all = [&](int wanted) {
    return std::all_of(tokens.begin(), tokens.end(), [&](int count) { return count == wanted; });
  };
  if (all(-1)) return in_quotes("router");
  if (all(all_tokens)) return in_quotes("all");
  return list_text(std::span(tokens), [](int count) { return std::to_string(count); });
}

std::string step_text(const StepSpec& step, const DiTConfig& config) {
  std::string text = fmt::format(R"("t": {}, "attn": {}, "mlp": {})", step.timestep,
                                 quoted_actions(step.attn), quoted_actions(step.mlp));
  const auto add = [&](const char* key, const std::string& value) {
    text += fmt::format(R"(, "{}": {})", key, value);
  };
  if (!step.ranges.empty()) {
    add("ranges", list_text(std::span(step.ranges), [](const RangeSkip& range) {
          return fmt::format(R"({{"from": {}, "to": {}, "order": {}{}}})", range.from, range.to, range.order,
                             range.absolute ? R"(, "absolute": true)" : "");
        }));
  }
  if (step.level > 0) add("level", std::to_string(step.level));
  if (step.guide == GuideKind::Off) add("guide", in_quotes("off"));
  if (step.guide == GuideKind::Weak) add("guide", in_quotes("weak"));
  if (step.guide == GuideKind::Forecast)
    add("guide", in_quotes(fmt::format("{}{}", kReuse, step.guide_order)));
  if (step.scale) add("scale", fmt::format("{}", *step.scale));
  if (step.restart) add("restart", "true");
  if (!step.heads.empty()) add("heads", parts_text(step.heads));
  if (!step.groups.empty()) add("groups", parts_text(step.groups));
  if (!step.tokens.empty()) add("tokens", tokens_text(step.tokens, config.num_tokens(step.level)));
  return "{" + text + "}";
}

}  // namespace

PlanSpec parse_plan(std::string_view text, const DiTConfig& config, const std::string& name) {
  return parse_plan(read_plan_json(text, name), config, name);
}

PlanSpec parse_plan(const Json& json, const DiTConfig& config, const std::string& name) {
  const JsonObject top = plan_object(json, name);
  check_size(top, "depth", config.depth);
  check_size(top, "num_heads", config.num_heads);
  check_size(top, "num_tokens", config.num_tokens());
  if (top.find("levels")) check_size(top, "levels", config.levels());
  const std::string path = top.text("path").value_or("table");
  DYDIT_CHECK(path == path_name(config.objective), "{}: its times are of the path {}, but the model's is {}",
              top.at(), quote(path), path_name(config.objective));
  return parse_steps(top, config, name);
}

StatedPlan parse_stated_plan(const Json& json, const std::string& name) {
  const JsonObject top = plan_object(json, name);
  StatedPlan plan;
  plan.config = {.input_size = stated_side(top),
                 .patch_size = 1,
                 .depth = top.whole("depth", 1, kLargestSize),
                 .num_heads = top.whole("num_heads", 1, kLargestSize)};
  if (top.find("levels")) {
    plan.config.level_from.resize(top.whole("levels", 1, kMostLevels) - 1);
    const int side = plan.config.input_size, largest = plan.config.patch(plan.config.levels() - 1);
    DYDIT_CHECK(side % largest == 0, "{}: levels is {}, but {} tokens a side cannot be joined by {}",
                top.at(), plan.config.levels(), side, largest);
  }
  const std::string path = top.text("path").value_or("table");
  const auto known = kPathNames.find(path);
  DYDIT_CHECK(known, "{}: path is {}; {} are known", top.at(), quote(path),
              fmt::join(kPathNames.names(), ", "));
  plan.config.objective = {known->path, Prediction::Noise, known->clock};
  plan.spec = parse_steps(top, plan.config, name);
  check_spec(plan.spec, plan.config, /*guided=*/true, name);
  return plan;
}

StatedPlan parse_stated_plan(std::string_view text, const std::string& name) {
  return parse_stated_plan(read_plan_json(text, name), name);
}

PlanSpec read_plan(const std::filesystem::path& path, const DiTConfig& config) {
  return parse_plan(text_of(MappedFile::open(path)->bytes()), config, path.string());
}

std::string plan_text(const PlanSpec& spec, const DiTConfig& config) {
  std::string text =
      fmt::format(R"({{"dydit_plan": {}, "name": {}, "depth": {}, "num_heads": {}, "num_tokens": {}, )"
                  R"("forecast": {})",
                  kVersion, in_quotes(spec.name), config.depth, config.num_heads, config.num_tokens(),
                  in_quotes(forecast_text(spec.forecast)));
  if (config.levels() > 1) text += fmt::format(R"(, "levels": {})", config.levels());
  if (config.objective.continuous()) text += fmt::format(R"(, "path": "{}")", path_name(config.objective));
  const auto add_text = [&](const char* key, const std::optional<std::string>& value) {
    if (value) text += fmt::format(R"(, "{}": {})", key, in_quotes(*value));
  };
  const auto add_number = [&](const char* key, const std::optional<float>& value) {
    if (value) text += fmt::format(R"(, "{}": {})", key, *value);
  };
  add_text("sampler", spec.sampler);
  add_number("eta", spec.eta);
  add_number("cfg_scale", spec.cfg_scale);
  add_text("mode", spec.mode);
  add_text("model_sha256", spec.model_sha256);
  if (!spec.note.empty()) add_text("note", spec.note);
  text += ",\n \"steps\": [";
  for (auto step = spec.steps.rbegin(); step != spec.steps.rend(); ++step)
    text += (step == spec.steps.rbegin() ? "\n  " : ",\n  ") + step_text(*step, config);
  return text + "]}\n";
}

}  // namespace dydit
