#include "dydit/serve/order.h"

#include <algorithm>
#include <optional>
#include <random>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "dydit/base/nearest.h"
#include "dydit/base/numbers.h"
#include "dydit/data/classes.h"
#include "dydit/diffusion/schedule.h"
#include "dydit/io/json.h"
#include "dydit/io/json_object.h"
#include "dydit/io/text.h"
#include "dydit/plan/stated_plan.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 8;  // a plan's lists of actions
constexpr size_t kLongestKey = 64;
constexpr float kMaxScale = 1000;
constexpr double kLeastBudget = 0.001;

// Does `work`; what is wrong then is that field's fault.
template <typename Work>
auto of_field(const std::string& field, const Work& work) {
  try {
    return work();
  } catch (const Refusal&) {
    throw;
  } catch (const Error& error) {
    throw Refusal(400, error.what(), field);
  }
}

// A body's object. Null is what a client writes for a field that it leaves out.
class Body {
 public:
  Body(std::string_view text, std::span<const std::string> known)
      : value_(of_field("", [&] { return without_nulls(read_json(text, kMaxDepth, "request")); })),
        object_(of_known(value_, known)) {}

  bool has(const char* key) const { return object_.find(key) != nullptr; }
  const json& at(const char* key) const { return object_.get(key); }
  int whole(const char* key, int low, int high, int otherwise) const {
    return has(key) ? of_field(key, [&] { return object_.whole(key, low, high); }) : otherwise;
  }
  float real(const char* key, float low, float high, float otherwise) const {
    return of_field(key, [&] {
      const float value = object_.real(key).value_or(otherwise);
      DYDIT_CHECK(value >= low && value <= high, "request: {} is {}; {} to {} is wanted", key, value, low,
                  high);
      return value;
    });
  }
  bool truth(const char* key) const {
    return of_field(key, [&] { return object_.truth(key); });
  }
  std::string text(const char* key, const std::string& otherwise = "") const {
    return of_field(key, [&] { return object_.text(key).value_or(otherwise); });
  }
  /// One of an enum's names.
  template <typename Names>
  auto choice(const char* key, const Names& names, decltype(names.entries[0].value) otherwise) const {
    if (!has(key)) return otherwise;
    const std::string name = text(key);
    return of_field(key, [&] {
      const auto found = names.find(name);
      DYDIT_CHECK(found, "request: {} is {}; choose from {}", key, quote(name),
                  fmt::join(names.names(), ", "));
      return *found;
    });
  }
  std::vector<double> numbers(const char* key, double high) const {
    return of_field(key, [&] {
      std::vector<double> numbers;
      for (const json& value : object_.list(at(key), key)) {
        DYDIT_CHECK(value.is_number() && value >= 0 && value <= high,
                    "request: {} holds {}; a number from 0 to {} is wanted", key, shown(value), high);
        numbers.push_back(value.get<double>());
      }
      DYDIT_CHECK(!numbers.empty(), "request: {} is empty; leave it out or give at least one", key);
      return numbers;
    });
  }
  std::vector<int> whole_numbers(const char* key, int high) const {
    return of_field(key, [&] {
      std::vector<int> numbers;
      for (const json& value : object_.list(at(key), key))
        numbers.push_back(object_.whole(value, key, 0, high));
      DYDIT_CHECK(!numbers.empty(), "request: {} is empty; leave it out or give at least one", key);
      return numbers;
    });
  }

 private:
  static json without_nulls(json value) {
    if (!value.is_object()) return value;
    for (auto item = value.begin(); item != value.end();) {
      item = item->is_null() ? value.erase(item) : std::next(item);
    }
    return value;
  }
  static JsonObject of_known(const json& value, std::span<const std::string> known) {
    std::string param;
    if (value.is_object()) {
      for (const auto& [key, unused] : value.items()) {
        if (std::find(known.begin(), known.end(), key) == known.end()) param = printable(key, kLongestKey);
      }
    }
    try {
      return JsonObject(value, "request", known);
    } catch (const Error& error) {
      throw Refusal(400, error.what(), param, param.empty() ? "" : "unknown_field");
    }
  }

  const json value_;
  const JsonObject object_;
};

// Below 2^53, so that clients that read numbers as float64 keep all digits.
uint64_t drawn_seed() {
  std::random_device device;
  return (uint64_t{device()} << 32 | device()) >> 11;
}

// A number, or a text for clients whose numbers lose digits.
uint64_t seed_of(const Body& body) {
  if (!body.has("seed")) return drawn_seed();
  const json& value = body.at("seed");
  if (value.is_number_unsigned()) return value.get<uint64_t>();
  std::optional<uint64_t> seed;
  if (value.is_string()) seed = parse_number<uint64_t>(value.get_ref<const std::string&>());
  if (!seed)
    throw Refusal(400,
                  fmt::format("request: seed is {}; a whole number from 0 to 2^64 - 1 is wanted (as text, "
                              "where a client's numbers lose digits above 2^53)",
                              shown(value)),
                  "seed");
  return *seed;
}

size_t model_of(const std::string& name, std::span<const ModelTerms> models, const char* field) {
  if (name.empty()) return 0;
  std::vector<std::string> names;
  for (size_t i = 0; i < models.size(); ++i) {
    if (models[i].name == name) return i;
    names.push_back(models[i].name);
  }
  throw Refusal(404,
                fmt::format("model {} is not served; did you mean {}? GET /v1/models lists all", quote(name),
                            nearest_name(std::string_view(name).substr(0, kLongestKey), names)),
                field, "model_not_found");
}

// "cat", "3", "class:207", and several with commas between.
std::vector<int> classes_of(std::string text, const ModelTerms& model) {
  const int classes = std::max(model.config.num_classes, 1);  // without any, all is class 0
  return of_field("prompt", [&] {
    if (constexpr std::string_view kPrefix = "class:"; text.starts_with(kPrefix)) {
      text.erase(0, kPrefix.size());
      const std::optional<int> label = parse_number<int>(text);
      DYDIT_CHECK(label && *label >= 0 && *label < classes,
                  "request: prompt is \"class:{}\"; class:0 to class:{} is wanted", printable(text),
                  classes - 1);
      return std::vector{*label};
    }
    DYDIT_CHECK(!trimmed(text).empty(), "request: prompt is empty; this model makes classes: name one");
    return resolve_classes(text, model.class_names, classes);
  });
}

void check_size(int width, int height, const ModelTerms& model, const char* field) {
  if (width != model.side || height != model.side)
    throw Refusal(400,
                  fmt::format("request: {}x{} is asked for; {} makes images of {}x{} alone", width, height,
                              model.name, model.side, model.side),
                  field);
}

void read_size(const Body& body, const ModelTerms& model) {
  const std::string text = body.text("size", "auto");
  if (text == "auto") return;
  const size_t x = text.find('x');
  const auto width = parse_number<int>(text.substr(0, x)),
             height = parse_number<int>(x == text.npos ? "" : text.substr(x + 1));
  if (!width || !height)
    throw Refusal(
        400, fmt::format("request: size is {}; \"{}x{}\" is wanted", quote(text), model.side, model.side),
        "size");
  check_size(*width, *height, model, "size");
}

// Fields that have no meaning here, and the values in which they say nothing.
struct Neutral {
  const char* field;
  std::vector<json> values;
};

void refuse_others(const Body& body, std::span<const Neutral> neutrals) {
  for (const auto& [field, values] : neutrals) {
    if (!body.has(field)) continue;
    const json& value = body.at(field);
    if (std::none_of(values.begin(), values.end(), [&](const json& other) { return value == other; }))
      throw Refusal(400,
                    fmt::format("request: {} is {}; models of classes have no such thing: leave it out",
                                field, shown(value)),
                    field, "unsupported");
  }
}

void read_sampling(const Body& body, const ModelTerms& model, const OrderRules& rules, const char* sampler,
                   const char* steps, const char* scale, Request& request) {
  const DiTConfig& config = model.config;
  request.num_steps = body.whole(steps, 1, kNumTrainTimesteps, rules.steps);
  request.cfg_scale = body.real(scale, 0, kMaxScale, model.config.can_guide() ? rules.cfg_scale : 1);
  request.sampler.eta = body.real("eta", 0, 1, 0);
  take_few_step(model.few_step,
                {.sampler = !body.has(sampler), .cfg_scale = !body.has(scale), .steps = !body.has(steps)},
                request);
  if (request.sampler.eta != 0 && request.sampler.kind != SamplerKind::Ddim)
    throw Refusal(400, "request: eta is DDIM's; the other samplers have none", "eta");
  request.mode = config.is_dynamic() ? Mode::Dynamic : Mode::Static;
  request.mode = body.choice("mode", kModeNames, request.mode);
  if (request.mode == Mode::Dynamic && !config.is_dynamic())
    throw Refusal(400, fmt::format("request: mode is \"dynamic\"; {} is a static DiT", model.name), "mode");
}

void read_plan_fields(const Body& body, const ModelTerms& model, const char* steps, Order& order) {
  Request& request = order.request;
  const int given = body.has("cache") + body.has("budget") + body.has("plan");
  if (given > 1)
    throw Refusal(400, "request: of cache, budget and plan at most one is wanted",
                  body.has("budget") ? "budget" : "plan");
  PlanPolicy& policy = order.policy;
  policy.cache = body.text("cache", "none");
  // A policy that reads a file of the server's.
  if (policy.cache.starts_with("l2c"))
    throw Refusal(400, "request: cache l2c reads a file; send the plan that it makes as plan", "cache");
  order.budget = body.has("budget") ? body.real("budget", kLeastBudget, 1, 0) : 0;
  constexpr int kLast = kNumTrainTimesteps - 1;
  policy.guide = {.from = body.whole("guide_from", 0, kLast, kLast),
                  .to = body.whole("guide_to", 0, kLast, 0),
                  .every = body.whole("guide_every", 1, kNumTrainTimesteps, 1),
                  .weak = body.truth("guide_weak")};
  if (!policy.guide.is_default() && (!request.guided() || body.has("plan") || body.has("budget")))
    throw Refusal(
        400,
        "request: guide_from, guide_to, guide_every and guide_weak need guidance_scale above 1, and "
        "neither plan nor budget, which say when guidance runs",
        "guide_from");
  if (body.has("weak_steps")) policy.levels.steps = body.whole_numbers("weak_steps", kNumTrainTimesteps);
  if (body.has("level_from")) policy.levels.from = body.whole_numbers("level_from", kLast);
  if (body.has("weak_steps") + body.has("level_from") + body.has("plan") + (order.budget > 0) > 1)
    throw Refusal(400, "request: of weak_steps, level_from, plan and budget at most one is wanted",
                  body.has("weak_steps") ? "weak_steps" : "level_from");
  if (body.has("timesteps")) {
    if (body.has(steps) || order.budget > 0 || body.has("plan"))
      throw Refusal(400, fmt::format("request: timesteps goes without {}, budget and plan", steps),
                    "timesteps");
    if (model.config.objective.continuous()) {
      request.timesteps = body.numbers("timesteps", last_time(model.config.objective));
    } else {
      const std::vector<int> whole = body.whole_numbers("timesteps", kLast);
      request.timesteps.assign(whole.begin(), whole.end());
    }
    of_field("timesteps", [&] { sorted_timesteps(request.timesteps, model.config.objective); });
  }
  if (!body.has("plan")) return;
  of_field("plan", [&] {
    const Spacing wanted = run_spacing(request, model.config.objective);
    request.plan = parse_plan(body.at("plan"), model.config, "plan");
    check_spec(*request.plan, model.config, request.guided(), "plan");
    DYDIT_CHECK(!body.has(steps) || wanted.timesteps == request.plan->timesteps(),
                "plan: its {} timesteps are not those of {}; leave that out", request.plan->steps.size(),
                steps);
  });
}

// The plan of a policy, or none: what cannot be is told before anything is made.
void check_order(const ModelTerms& model, Order& order) {
  Request& request = order.request;
  if (request.plan) {
    of_field("plan", [&] { check_request(model.config, request); });
  } else {
    of_field("cache", [&] { plan_by_policy(order.policy, model.config, request); });
    of_field("", [&] { check_request(model.config, request); });
  }
  of_field("", [&] { check_few_step(model.few_step, model.config.objective, request); });
  order.partial_images = std::min(order.partial_images, request.total_steps() - 1);
}

int images_of(const Body& body, const char* field, const OrderRules& rules, int otherwise) {
  if (otherwise > rules.max_images)
    throw Refusal(400,
                  fmt::format("request: {} classes are {} images; at most {} are made in one request",
                              otherwise, otherwise, rules.max_images),
                  field);
  return body.whole(field, 1, rules.max_images, otherwise);
}

}  // namespace

Order read_generation(std::string_view text, std::span<const ModelTerms> models, const OrderRules& rules) {
  static const std::vector<std::string> kKnown = {"prompt",
                                                  "n",
                                                  "size",
                                                  "response_format",
                                                  "output_format",
                                                  "stream",
                                                  "quality",
                                                  "style",
                                                  "background",
                                                  "moderation",
                                                  "user",
                                                  "model",
                                                  "seed",
                                                  "num_inference_steps",
                                                  "guidance_scale",
                                                  "sampler",
                                                  "eta",
                                                  "mode",
                                                  "budget",
                                                  "cache",
                                                  "plan",
                                                  "guide_from",
                                                  "guide_to",
                                                  "guide_every",
                                                  "guide_weak",
                                                  "weak_steps",
                                                  "level_from",
                                                  "timesteps",
                                                  "cost_map",
                                                  "timeout_s",
                                                  "progress",
                                                  "class_labels",
                                                  "partial_images",
                                                  "output_compression"};
  static const std::vector<Neutral> kNeutral = {{"quality", {"auto", "standard"}},
                                                {"style", {}},
                                                {"background", {"auto", "opaque"}},
                                                {"moderation", {"auto", "low"}},
                                                {"output_compression", {100}}};
  const Body body(text, kKnown);
  refuse_others(body, kNeutral);
  Order order;
  order.model = model_of(body.text("model"), models, "model");
  const ModelTerms& model = models[order.model];
  Request& request = order.request;
  if (body.has("prompt") == body.has("class_labels"))
    throw Refusal(400,
                  body.has("prompt") ? "request: prompt and class_labels both name classes; give one"
                                     : "request: prompt is missing: the name or number of a class",
                  "prompt");
  request.classes = body.has("prompt")
                        ? classes_of(body.text("prompt"), model)
                        : body.whole_numbers("class_labels", std::max(model.config.num_classes - 1, 0));
  request.num_images = images_of(body, "n", rules, static_cast<int>(request.classes.size()));
  if (request.classes.size() > static_cast<size_t>(request.num_images))
    throw Refusal(400,
                  fmt::format("request: {} classes are named and n is {}; some would get no image",
                              request.classes.size(), request.num_images),
                  "n");
  read_size(body, model);
  request.seed = seed_of(body);
  request.sampler.kind = body.choice("sampler", kSamplerNames, rules.sampler);
  of_field("sampler", [&] { check_sampler(model.config.objective, request.sampler); });
  read_sampling(body, model, rules, "sampler", "num_inference_steps", "guidance_scale", request);
  read_plan_fields(body, model, "num_inference_steps", order);
  const std::string format = body.text("response_format", "b64_json");
  if (format != "b64_json" && format != "url")
    throw Refusal(400,
                  fmt::format("request: response_format is {}; b64_json or url is wanted", quote(format)),
                  "response_format");
  order.url = format == "url";
  if (const std::string kind = body.text("output_format", "png"); kind != "png")
    throw Refusal(400, fmt::format("request: output_format is {}; pictures are png", quote(kind)),
                  "output_format");
  order.stream = body.truth("stream");
  order.progress = body.truth("progress");
  if (order.progress && !order.stream)
    throw Refusal(400, "request: progress needs stream, in which it is told", "progress");
  order.partial_images = body.whole("partial_images", 0, kMaxPartialImages, 0);
  order.cost_map = body.truth("cost_map");
  if (order.cost_map && !(request.mode == Mode::Dynamic && model.config.token_routers))
    throw Refusal(400, "request: cost_map needs a model with token routers and mode dynamic", "cost_map");
  order.seconds = body.real("timeout_s", 0.001f, static_cast<float>(rules.max_seconds),
                            static_cast<float>(rules.max_seconds));
  order.user = body.text("user");
  check_order(model, order);
  return order;
}

Order read_txt2img(std::string_view text, std::span<const ModelTerms> models, const OrderRules& rules) {
  static const std::vector<Neutral> kNeutral = {{"negative_prompt", {""}},
                                                {"styles", {json::array()}},
                                                {"subseed", {-1, 0}},
                                                {"subseed_strength", {0, 0.0}},
                                                {"seed_resize_from_h", {-1, 0}},
                                                {"seed_resize_from_w", {-1, 0}},
                                                {"restore_faces", {false}},
                                                {"tiling", {false}},
                                                {"enable_hr", {false}},
                                                {"denoising_strength", {0, 0.0}},
                                                {"do_not_save_samples", {true, false}},
                                                {"do_not_save_grid", {true, false}},
                                                {"save_images", {false}},
                                                {"send_images", {true}},
                                                {"scheduler", {"", "Automatic"}},
                                                {"s_churn", {0, 0.0}},
                                                {"s_noise", {1, 1.0}},
                                                {"script_name", {""}},
                                                {"script_args", {json::array()}},
                                                {"alwayson_scripts", {json::object()}},
                                                {"override_settings_restore_afterwards", {true, false}}};
  static const std::vector<std::string> kKnown = [] {
    std::vector<std::string> known = {"prompt",
                                      "seed",
                                      "steps",
                                      "cfg_scale",
                                      "sampler_name",
                                      "sampler_index",
                                      "batch_size",
                                      "n_iter",
                                      "width",
                                      "height",
                                      "eta",
                                      "mode",
                                      "budget",
                                      "cache",
                                      "plan",
                                      "guide_from",
                                      "guide_to",
                                      "guide_every",
                                      "guide_weak",
                                      "weak_steps",
                                      "level_from",
                                      "timesteps",
                                      "override_settings"};
    for (const Neutral& neutral : kNeutral) known.emplace_back(neutral.field);
    return known;
  }();
  const Body body(text, kKnown);
  refuse_others(body, kNeutral);
  Order order;
  std::string name;
  if (body.has("override_settings")) {
    of_field("override_settings", [&] {
      static const std::vector<std::string> kSettings = {"sd_model_checkpoint"};
      const JsonObject settings(body.at("override_settings"), "request: override_settings", kSettings);
      name = settings.text("sd_model_checkpoint").value_or("");
    });
  }
  order.model = model_of(name, models, "override_settings");
  const ModelTerms& model = models[order.model];
  Request& request = order.request;
  if (!body.has("prompt"))
    throw Refusal(400, "request: prompt is missing: the name or number of a class", "prompt");
  request.classes = classes_of(body.text("prompt"), model);
  const int batch = images_of(body, "batch_size", rules, static_cast<int>(request.classes.size())),
            rounds = body.whole("n_iter", 1, rules.max_images, 1);
  request.num_images = batch * rounds;
  if (request.num_images > rules.max_images)
    throw Refusal(400,
                  fmt::format("request: batch_size x n_iter is {}; at most {} images are made in one request",
                              request.num_images, rules.max_images),
                  "n_iter");
  if (request.classes.size() > static_cast<size_t>(request.num_images))
    throw Refusal(400, "request: more classes than images are named", "batch_size");
  check_size(body.whole("width", 1, 1 << 16, model.side), body.whole("height", 1, 1 << 16, model.side), model,
             "width");
  const bool drawn = body.has("seed") && body.at("seed") == json(-1);
  request.seed = drawn ? drawn_seed() : seed_of(body);
  const char* const sampler = body.has("sampler_name") ? "sampler_name" : "sampler_index";
  request.sampler.kind = body.choice(sampler, kWebUiSamplerNames, rules.sampler);
  of_field(sampler, [&] { check_sampler(model.config.objective, request.sampler); });
  read_sampling(body, model, rules, sampler, "steps", "cfg_scale", request);
  read_plan_fields(body, model, "steps", order);
  order.seconds = rules.max_seconds;
  check_order(model, order);
  return order;
}

}  // namespace dydit
