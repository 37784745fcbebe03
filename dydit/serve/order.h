// What a client asks for: JSON of the routes that make images, read strictly, against the models there are.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dydit/model/config.h"
#include "dydit/pipeline/request.h"
#include "dydit/plan/policies.h"
#include "dydit/serve/refusal.h"

namespace dydit {

/// What of a model an order is read against.
struct ModelTerms {
  std::string name;  // how requests call it
  DiTConfig config;
  std::vector<std::string> class_names = {};  // empty or one a class
  int side = 0;                               // of its images, in pixels
  std::optional<FewStep> few_step = {};
};

/// What the server allows, and what an order that says nothing gets.
struct OrderRules {
  int max_images = 16;
  double max_seconds = 600;  // from the order to its last image
  int steps = 50;
  SamplerKind sampler = SamplerKind::Ddim;
  float cfg_scale = 4;
};

inline constexpr int kMaxPartialImages = 3;

struct Order {
  size_t model = 0;  // among the terms
  Request request;   // its plan only where one was given; of a policy or a budget the service makes it
  PlanPolicy policy;
  double budget = 0;       // share of the static model's work; 0: none
  int partial_images = 0;  // previews of each image, at even distances
  bool cost_map = false;   // also where the work went
  double seconds = 0;      // that it may take
  bool stream = false;     // answered by events
  bool progress = false;   // of which some tell how far it is
  bool url = false;        // answered with addresses instead of the pictures
  std::string user = {};   // for the log
};

/// POST /v1/images/generations and /v1/jobs: OpenAI's fields and ours. A seed that is not given is drawn.
/// Throws Refusal 400 that names the field: unknown (with the nearest known one), given twice, of another
/// kind, out of range, or without a meaning for models of classes; 404 for an unknown model.
Order read_generation(std::string_view body, std::span<const ModelTerms> models, const OrderRules& rules);

/// POST /sdapi/v1/txt2img: the web UI's fields. What would change nothing here is taken in its neutral value
/// alone.
Order read_txt2img(std::string_view body, std::span<const ModelTerms> models, const OrderRules& rules);

/// How the web UI calls a sampler.
inline constexpr EnumNames<SamplerKind, 6> kWebUiSamplerNames = {"sampler_name",
                                                                 {{"DDPM", SamplerKind::Ddpm},
                                                                  {"DDIM", SamplerKind::Ddim},
                                                                  {"DPM++ 2M", SamplerKind::Dpm},
                                                                  {"Euler", SamplerKind::Euler},
                                                                  {"Heun", SamplerKind::Heun},
                                                                  {"LCM", SamplerKind::Lcm}}};

}  // namespace dydit
