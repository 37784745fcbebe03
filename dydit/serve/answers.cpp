#include "dydit/serve/answers.h"

#include <algorithm>
#include <fstream>
#include <string>
#include <unistd.h>

#include <fmt/format.h>

#include "dydit/base/numbers.h"
#include "dydit/engine/engine.h"
#include "dydit/io/base64.h"
#include "dydit/io/json.h"
#include "dydit/model/config.h"

namespace dydit {
namespace {

using nlohmann::json;

json cost_of(const json& record) {
  json cost;
  for (const char* key : {"seconds", "required_gmacs", "executed_gmacs", "required_share", "executed_share",
                          "decode_seconds", "token_share"}) {
    if (record.contains(key)) cost[key] = record[key];
  }
  return cost;
}

json image_answer(const Job& job, const JobEvent& image, const std::string& base) {
  const json& record = image.record;
  json answer = {{"index", image.image},   {"class", record["class"]},   {"class_name", record["class_name"]},
                 {"seed", record["seed"]}, {"sha256", record["sha256"]}, {"cost", cost_of(record)}};
  if (job.order.url) {
    answer["url"] = base + "/v1/files/" + picture_name(job, image.image, false);
  } else {
    answer["b64_json"] = base64(image.png);
  }
  if (image.cost_map.empty()) return answer;
  answer["cost"]["map"] = record["cost_map"];
  if (job.order.url) {
    answer["cost_map_url"] = base + "/v1/files/" + picture_name(job, image.image, true);
  } else {
    answer["cost_map_b64_json"] = base64(image.cost_map);
  }
  return answer;
}

// Tokens as OpenAI counts them: none come in, and the images' are ours.
json usage_of(const Job& job, const std::vector<std::shared_ptr<const JobEvent>>& images) {
  double required = 0, executed = 0, seconds = 0;
  int count = 0;
  for (const auto& image : images) {
    if (!image) continue;
    ++count;
    required += image->record["required_gmacs"].get<double>();
    executed += image->record["executed_gmacs"].get<double>();
    seconds += image->record["seconds"].get<double>();
  }
  return {{"input_tokens", 0},          {"input_tokens_details", {{"text_tokens", 0}, {"image_tokens", 0}}},
          {"output_tokens", count},     {"total_tokens", count},
          {"required_gmacs", required}, {"executed_gmacs", executed},
          {"seconds", seconds},         {"elapsed_seconds", job.seconds()}};
}

std::string event_text(std::string_view name, const json& data) {
  return fmt::format("event: {}\ndata: {}\n\n", name, json_text(data));
}

}  // namespace

json images_answer(const Job& job, const std::string& base) {
  const auto images = job.images();
  json data = json::array();
  for (const auto& image : images) {
    if (image) data.push_back(image_answer(job, *image, base));
  }
  return {{"created", job.created}, {"data", data}, {"usage", usage_of(job, images)}};
}

std::string stream_event(const Job& job, const JobEvent& event) {
  if (event.step > 0) {
    constexpr const char* kName = "image_generation.partial_image";
    const int steps = job.order.request.total_steps();
    return event_text(kName,
                      {{"type", kName},
                       {"b64_json", base64(event.png)},
                       {"created_at", job.created},
                       {"index", event.image},
                       {"partial_image_index", event.step * (job.order.partial_images + 1) / steps - 1},
                       {"step", event.step},
                       {"steps", steps}});
  }
  constexpr const char* kName = "image_generation.completed";
  json data = image_answer(job, event, "");
  data["type"] = kName;
  data["created_at"] = job.created;
  data["b64_json"] = base64(event.png);
  data.erase("url");
  data["usage"] = usage_of(job, job.images());
  return event_text(kName, data);
}

std::string stream_error(const Refusal& refusal) { return event_text("error", error_answer(refusal)); }

std::string stream_progress(const Service& service, const Job& job) {
  constexpr const char* kName = "image_generation.progress";
  return event_text(kName, {{"type", kName},
                            {"progress", job.status().progress},
                            {"queue_position", service.queue_position(job)},
                            {"eta_s", service.seconds_left(job)}});
}

json job_answer(const Service& service, const Job& job, const std::string& base) {
  const JobStatus status = job.status();
  json answer = {{"id", job.id},
                 {"object", "job"},
                 {"status", kJobStateNames[status.state]},
                 {"created", job.created},
                 {"model", service.terms()[job.order.model].name},
                 {"n", job.order.request.num_images},
                 {"finished", status.finished},
                 {"progress", status.progress},
                 {"seconds", job.seconds()},
                 {"poll_url", base + "/v1/jobs/" + job.id}};
  if (!status.ended()) {
    answer["queue_position"] = service.queue_position(job);
    answer["eta_s"] = service.seconds_left(job);
  }
  if (const auto failure = job.failure()) answer["error"] = error_answer(*failure)["error"];
  if (status.state == JobState::Completed) {
    const json images = images_answer(job, base);
    answer["data"] = images["data"];
    answer["usage"] = images["usage"];
  }
  return answer;
}

json txt2img_answer(const Job& job, const ModelTerms& model, std::string_view parameters) {
  json images = json::array(), seeds = json::array(), costs = json::array(), texts = json::array();
  for (const auto& image : job.images()) {
    if (!image) continue;
    images.push_back(base64(image->png));
    seeds.push_back(image->record["seed"]);
    costs.push_back(cost_of(image->record));
    texts.push_back(image->record["class_name"]);
  }
  const Request& request = job.order.request;
  const json info = {{"prompt", texts.empty() ? json("") : texts[0]},
                     {"all_prompts", texts},
                     {"seed", request.seed},
                     {"all_seeds", seeds},
                     {"steps", request.total_steps()},
                     {"cfg_scale", request.cfg_scale},
                     {"sampler_name", kWebUiSamplerNames[request.sampler.kind]},
                     {"width", model.side},
                     {"height", model.side},
                     {"sd_model_name", model.name},
                     {"cost", costs}};
  return {{"images", images},
          {"parameters", parse_json(parameters, 16).value_or(json::object())},
          {"info", json_text(info)}};
}

json progress_answer(const Service& service, std::string_view client) {
  double progress = 0, left = 0;
  int jobs = 0, step = 0, steps = 0;
  for (const auto& job : service.jobs_of(client)) {
    const JobStatus status = job->status();
    if (status.ended()) continue;
    ++jobs;
    progress += status.progress;
    left = std::max(left, service.seconds_left(*job));
    steps = job->order.request.total_steps();
    step = static_cast<int>(status.progress * steps);
  }
  return {{"progress", jobs > 0 ? progress / jobs : 0},
          {"eta_relative", left},
          {"state",
           {{"skipped", false},
            {"interrupted", false},
            {"job", jobs > 0 ? "txt2img" : ""},
            {"job_count", jobs},
            {"job_no", 0},
            {"sampling_step", step},
            {"sampling_steps", steps}}},
          {"current_image", nullptr},
          {"textinfo", nullptr}};
}

json models_answer(const Service& service) {
  json data = json::array();
  for (size_t i = 0; i < service.terms().size(); ++i) {
    const ModelTerms& terms = service.terms()[i];
    const ServedModel& model = *service.models()[i];
    json classes = json::array();
    for (int label = 0; label < terms.config.num_classes; ++label)
      classes.push_back(terms.class_names.empty() ? fmt::format("{}", label)
                                                  : terms.class_names[static_cast<size_t>(label)]);
    const OrderRules& rules = service.options().rules;
    Request usual = {.num_steps = rules.steps,
                     .sampler = {.kind = rules.sampler},
                     .cfg_scale = terms.config.can_guide() ? rules.cfg_scale : 1};
    take_few_step(terms.few_step, {}, usual);
    data.push_back({{"id", terms.name},
                    {"object", "model"},
                    {"created", 0},
                    {"owned_by", "dydit"},
                    {"architecture", model_name(terms.config)},
                    {"sha256", model.checkpoint.sha256},
                    {"parameters", model.checkpoint.num_parameters()},
                    {"arithmetic", arithmetic_text(model.kind, model.options.dtype)},
                    {"classes", classes},
                    {"named", !terms.class_names.empty()},
                    {"size", fmt::format("{0}x{0}", terms.side)},
                    {"dynamic", terms.config.is_dynamic()},
                    {"cost_map", terms.config.token_routers},
                    {"budgets", model.plans.has_value()},
                    {"max_images", rules.max_images},
                    {"rows", service.max_rows(i)},
                    {"defaults",
                     {{"num_inference_steps", usual.num_steps},
                      {"guidance_scale", usual.cfg_scale},
                      {"sampler", kSamplerNames[usual.sampler.kind]}}},
                    {"samplers", samplers_of(terms.few_step, terms.config.objective)}});
  }
  return {{"object", "list"}, {"data", data}};
}

json status_answer(const Service& service) {
  const ServiceNumbers numbers = service.numbers();
  return {{"queued_requests", numbers.queued_jobs},         {"queued_images", numbers.queued_images},
          {"images_in_flight", numbers.images_in_flight},   {"images", numbers.images},
          {"images_per_second", numbers.images_per_second}, {"draining", numbers.draining}};
}

json plan_answer(const Service& service, const std::string& model, const std::string& steps,
                 const std::string& sampler) {
  json body = {{"prompt", "class:0"}, {"guidance_scale", 1}};
  if (!model.empty()) body["model"] = model;
  if (!sampler.empty()) body["sampler"] = sampler;
  if (!steps.empty()) {
    const auto number = parse_number<int>(steps);
    body["num_inference_steps"] = number ? json(*number) : json(steps);
  }
  const Order order = read_generation(json_text(body), service.terms(), service.options().rules);
  const RunPlan plan = [&] {
    try {
      return service.models()[order.model]->pipeline.plan(order.request);
    } catch (const UsageError& error) {
      throw Refusal(400, error.what());
    }
  }();
  const int depth = plan.config.depth, parts = plan.config.num_heads;
  json timesteps = json::array(), heads = json::array(), groups = json::array();
  double all_heads = 0, all_groups = 0;
  for (int block = 0; block < depth; ++block) {
    json head_shares = json::array(), group_shares = json::array();
    for (auto step = plan.steps.rbegin(); step != plan.steps.rend(); ++step) {
      const BlockWidth& width = step->blocks[static_cast<size_t>(block)];
      head_shares.push_back(static_cast<double>(width.active_heads()) / parts);
      group_shares.push_back(static_cast<double>(width.active_groups()) / parts);
      all_heads += width.active_heads();
      all_groups += width.active_groups();
    }
    heads.push_back(head_shares);
    groups.push_back(group_shares);
  }
  for (auto step = plan.steps.rbegin(); step != plan.steps.rend(); ++step)
    timesteps.push_back(json_number(step->timestep));
  const double total = static_cast<double>(depth) * parts * static_cast<double>(plan.steps.size());
  return {{"timesteps", timesteps},
          {"heads", heads},
          {"groups", groups},
          {"mean_heads", all_heads / total},
          {"mean_groups", all_groups / total}};
}

int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

std::string metrics_text(const Service& service, const RequestCounts& requests, int connections) {
  const ServiceNumbers numbers = service.numbers();
  std::string text;
  const auto say = [&](std::string_view name, std::string_view kind, std::string_view help) {
    text += fmt::format("# HELP dydit_{0} {2}\n# TYPE dydit_{0} {1}\n", name, kind, help);
  };
  const auto one = [&](std::string_view name, std::string_view kind, std::string_view help, auto value) {
    say(name, kind, help);
    text += fmt::format("dydit_{} {}\n", name, value);
  };
  say("http_requests_total", "counter", "Answers by route and status.");
  for (const auto& [key, count] : requests)
    text += fmt::format("dydit_http_requests_total{{route=\"{}\",code=\"{}\"}} {}\n", key.first, key.second,
                        count);
  one("http_connections", "gauge", "Open connections.", connections);
  say("orders_total", "counter", "Orders by how they ended.");
  for (const auto& [how, count] : {std::pair{"completed", numbers.completed},
                                   {"failed", numbers.failed},
                                   {"cancelled", numbers.cancelled},
                                   {"refused", numbers.refused}})
    text += fmt::format("dydit_orders_total{{end=\"{}\"}} {}\n", how, count);
  one("queue_orders", "gauge", "Orders of which something waits.", numbers.queued_jobs);
  one("queue_images", "gauge", "Images that wait.", numbers.queued_images);
  one("images_in_flight", "gauge", "Images that are being sampled.", numbers.images_in_flight);
  one("images_total", "counter", "Images finished.", numbers.images);
  one("steps_total", "counter", "Sampling steps of images.", numbers.steps);
  one("images_per_second", "gauge", "Rate of the last minute.", numbers.images_per_second);
  say("forward_rows", "histogram", "Rows of a forward.");
  uint64_t below = 0;
  for (size_t i = 0; i < kRowBins.size(); ++i) {
    below += numbers.forwards[i];
    text += fmt::format("dydit_forward_rows_bucket{{le=\"{}\"}} {}\n", kRowBins[i], below);
  }
  below += numbers.forwards.back();
  text += fmt::format(
      "dydit_forward_rows_bucket{{le=\"+Inf\"}} {}\ndydit_forward_rows_sum {}\n"
      "dydit_forward_rows_count {}\n",
      below, numbers.rows, below);
  say("gmacs_total", "counter", "Billions of multiply-adds, of finished images.");
  text +=
      fmt::format("dydit_gmacs_total{{kind=\"required\"}} {}\ndydit_gmacs_total{{kind=\"executed\"}} {}\n",
                  numbers.required_gmacs, numbers.executed_gmacs);
  say("seconds_total", "counter", "Time by phase; pictures are decoded and encoded beside the forwards.");
  text += fmt::format(
      "dydit_seconds_total{{phase=\"forward\"}} {}\ndydit_seconds_total{{phase=\"picture\"}} {}\n",
      numbers.forward_seconds, numbers.picture_seconds);
  one("kept_bytes", "gauge", "Bytes of pictures that clients may still fetch.", numbers.kept_bytes);
  one("resident_bytes", "gauge", "Memory of the process.", resident_bytes());
  one("draining", "gauge", "1: nothing is accepted any more.", numbers.draining ? 1 : 0);
  return text;
}

std::string picture_name(const Job& job, int index, bool cost_map) {
  return fmt::format("{}-{}{}.png", job.id, index, cost_map ? "-cost" : "");
}

std::string picture_of(const Service& service, std::string_view name) {
  const size_t dash = name.find('-');
  const Refusal none(404, "there is no such picture");
  if (dash == name.npos || !name.ends_with(".png")) throw none;
  const std::shared_ptr<const Job> job = service.find(std::string(name.substr(0, dash)));
  for (const auto& image : job->images()) {
    if (!image) continue;
    if (name == picture_name(*job, image->image, false)) return image->png;
    if (name == picture_name(*job, image->image, true) && !image->cost_map.empty()) return image->cost_map;
  }
  throw none;
}

}  // namespace dydit
