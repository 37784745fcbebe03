#include "dydit/serve/served_model.h"

#include <array>
#include <utility>

#include <ATen/ops/nan_to_num.h>

#include "dydit/io/file.h"
#include "dydit/io/png.h"
#include "dydit/pipeline/cost_map.h"
#include "dydit/pipeline/pixels.h"
#include "dydit/pipeline/record.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr const char* kPictureName = "a picture of the answer";

}  // namespace

ServedModel::ServedModel(std::string name, Checkpoint checkpoint, EngineKind kind,
                         const EngineOptions& options, std::optional<LatentDecoder> decoder,
                         std::optional<LatentDecoder> previews)
    : name(std::move(name)),
      checkpoint(std::move(checkpoint)),
      kind(kind),
      options(options),
      pipeline(this->checkpoint, kind, options),
      decoder(std::move(decoder)),
      previews(std::move(previews)) {}

ModelTerms ServedModel::terms() const {
  return {name, checkpoint.config, checkpoint.class_names,
          checkpoint.config.input_size * (decoder ? decoder->factor() : 1), checkpoint.few_step};
}

GenerateOptions ServedModel::run_options(const Order& order) const {
  GenerateOptions run{order.request, {.batch = 1, .threads = options.threads}, options.dtype, kind};
  run.where = options.where;
  run.token_map = order.cost_map;
  return run;
}

void ServedModel::choose_plan(Order& order) const {
  // As Pipeline::plan does, which tells the model's path.
  if (order.request.plan && order.request.plan->model_sha256.value_or(checkpoint.sha256) != checkpoint.sha256)
    throw Refusal(400,
                  fmt::format("plan: is for the model of SHA-256 {:.10}, {} is of {:.10}",
                              *order.request.plan->model_sha256, name, checkpoint.sha256),
                  "plan");
  if (order.budget == 0) return;
  if (!plans)
    throw Refusal(400,
                  name + ": no plans are known for a budget; dydit calibrate measures them, beside the model",
                  "budget");
  try {
    check_plan_set(*plans, checkpoint, run_options(order), plans_file);
  } catch (const UsageError& error) {
    throw Refusal(400, error.what(), "budget");
  }
  const MeasuredPlan* const best = plan_within(*plans, order.budget);
  if (!best)
    throw Refusal(400,
                  fmt::format("request: budget is {}; the cheapest plan of {} costs {:.4f}", order.budget,
                              name, plans->plans.front().cost_max),
                  "budget");
  order.request.plan = best->plan;
}

json ServedModel::run_record(const Order& order, const RunPlan& plan) const {
  const GenerateOptions run = run_options(order);
  json record = dydit::run_record(checkpoint, run);
  if (order.request.plan) {
    json said;
    if (order.budget > 0) {
      said = said_budget(order.budget, order.request.num_steps, *plan_within(*plans, order.budget));
    } else if (order.policy.is_default()) {
      said = {{"file", "plan.json"}};  // which came with the order
    } else {
      said = said_policy(order.policy);
    }
    record["plan"] = plan_record(checkpoint, run, plan, said);
  }
  if (decoder) {
    record["vae"] = vae;
    record["size"] = terms().side;
  }
  return record;
}

JobEvent ServedModel::finished(const Order& order, const json& run, GeneratedSample sample) const {
  if (decoder) {
    decoder->decode(sample);
  } else {
    sample.pixels = sample.sample;
  }
  const Image image = to_image(sample.pixels);
  json record = image_record(checkpoint, run_options(order), sample);
  record["seed"] = order.request.seed;
  JobEvent event{.image = sample.index};
  event.png = png_bytes(image, png_text(run, json::array({record})), kPictureName);
  record["sha256"] = sha256_hex(std::as_bytes(std::span(image.pixels)));
  if (sample.token_share.defined()) {
    const std::array shares = {sample.token_share};
    const ShareRange range = share_range(shares);
    const int grid = checkpoint.config.grid(), side = (kMinMapSide + grid - 1) / grid * grid;
    event.cost_map = png_bytes(heat_map(sample.token_share, range, side), {}, kPictureName);
    record["cost_map"] = {{"min", range.min}, {"max", range.max}};
  }
  event.record = std::move(record);
  return event;
}

JobEvent ServedModel::preview(const Order& order, int image, int step, const at::Tensor& x0) const {
  at::Tensor pixels = at::nan_to_num(x0);  // a broken run ends with an error of its own
  if (decoder) pixels = (previews ? *previews : *decoder).decode(pixels, "a preview");
  return {.image = image, .step = step, .png = png_bytes(to_image(pixels), {}, kPictureName)};
}

}  // namespace dydit
