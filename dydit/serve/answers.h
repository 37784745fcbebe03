// What clients are told, as JSON and text: the bodies of the routes.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "dydit/serve/service.h"

namespace dydit {

/// {created, data: [{b64_json or url, seed, index, class, class_name, sha256, cost, ...}], usage} of a job's
/// finished images. `base`: what an address begins with.
nlohmann::json images_answer(const Job& job, const std::string& base);
/// One event of a stream: "event: image_generation.partial_image" or ".completed", and its data.
std::string stream_event(const Job& job, const JobEvent& event);
std::string stream_error(const Refusal& refusal);
std::string stream_progress(const Service& service, const Job& job);

/// {id, status, created, progress, queue_position, eta_s, poll_url, ...}, once completed with its data.
nlohmann::json job_answer(const Service& service, const Job& job, const std::string& base);

/// The web UI's: {images, parameters, info}.
nlohmann::json txt2img_answer(const Job& job, const ModelTerms& model, std::string_view parameters);
nlohmann::json progress_answer(const Service& service, std::string_view client);

/// {object: "list", data: [{id, object, classes, size, dynamic, ...}]}
nlohmann::json models_answer(const Service& service);

/// What the page shows of the server: queue, rate, whether it drains.
nlohmann::json status_answer(const Service& service);

/// {timesteps, heads, groups, mean_heads, mean_groups}: shares that are on, a list a block from the first
/// step on, of a run that computes everything. Throws Refusal as reading an order does.
nlohmann::json plan_answer(const Service& service, const std::string& model, const std::string& steps,
                           const std::string& sampler);

/// Requests by status and route, of who counts them.
using RequestCounts = std::map<std::pair<std::string, int>, uint64_t>;
/// Prometheus' text.
std::string metrics_text(const Service& service, const RequestCounts& requests, int connections);

/// Bytes of memory that this process holds.
int64_t resident_bytes();

/// The name under which a picture of a job is fetched: JOB-INDEX.png, JOB-INDEX-cost.png.
std::string picture_name(const Job& job, int index, bool cost_map);
/// The bytes of that picture. Throws Refusal 404 or 410.
std::string picture_of(const Service& service, std::string_view name);

}  // namespace dydit
