// A model that is ready to be ordered from: weights packed, an autoencoder where it makes latents.
#pragma once

#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "dydit/calibrate/plan_set.h"
#include "dydit/pipeline/decoder.h"
#include "dydit/pipeline/generate.h"
#include "dydit/serve/job.h"
#include "dydit/serve/order.h"

namespace dydit {

struct ServedModel {
  /// `decoder`: of a model of latents; `previews`: another one for what is still in flight.
  ServedModel(std::string name, Checkpoint checkpoint, EngineKind kind, const EngineOptions& options,
              std::optional<LatentDecoder> decoder = {}, std::optional<LatentDecoder> previews = {});
  ServedModel(const ServedModel&) = delete;
  ServedModel& operator=(const ServedModel&) = delete;

  ModelTerms terms() const;
  /// Makes the order's plan where a budget says which. Throws Refusal for one that cannot be met, and for a
  /// plan of another model.
  void choose_plan(Order& order) const;
  /// The record of an order's run, as generate writes it.
  nlohmann::json run_record(const Order& order, const RunPlan& plan) const;
  /// What is told of a finished image (decoded here, where it is a latent) or of a predicted one.
  JobEvent finished(const Order& order, const nlohmann::json& run, GeneratedSample sample) const;
  JobEvent preview(const Order& order, int image, int step, const at::Tensor& x0) const;

  const std::string name;
  const Checkpoint checkpoint;
  const EngineKind kind;
  const EngineOptions options;
  const Pipeline pipeline;
  const std::optional<LatentDecoder> decoder, previews;
  std::optional<PlanSet> plans;  // of dydit calibrate, for budgets
  std::string plans_file;
  nlohmann::json vae;  // the decoder's record

 private:
  GenerateOptions run_options(const Order& order) const;
};

}  // namespace dydit
