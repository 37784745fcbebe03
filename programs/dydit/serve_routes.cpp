#include "serve_routes.h"

#include <algorithm>
#include <arpa/inet.h>
#include <chrono>
#include <functional>
#include <set>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <openssl/crypto.h>

#include "dydit/base/timer.h"
#include "dydit/io/base64.h"
#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr auto kLook = std::chrono::milliseconds(100);  // whether the client is still there
constexpr auto kProgress = std::chrono::milliseconds(250);
constexpr auto kComment = std::chrono::seconds(10);  // between events, for proxies

// What the log tells of the request that this thread answers.
struct Told {
  Timer timer;
  std::string route = "other", client, job, user;
  double gmacs = 0;
};
thread_local Told told;

bool same_secret(std::string_view a, std::string_view b) {
  const std::string x = sha256_hex(std::as_bytes(std::span(a))), y = sha256_hex(std::as_bytes(std::span(b)));
  return CRYPTO_memcmp(x.data(), y.data(), x.size()) == 0;
}

// The sha256 of what stands between two tags, as a policy names a script or a style that stands in the page.
std::string policy_hash(std::string_view page, std::string_view open, std::string_view close) {
  const size_t begin = page.find(open) + open.size(), end = page.find(close, begin);
  const std::string hex = sha256_hex(std::as_bytes(std::span(page.substr(begin, end - begin))));
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2)
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return fmt::format("'sha256-{}'", base64(bytes));
}

std::string host_name(std::string_view host) {
  if (host.starts_with('[')) return lower_case(host.substr(0, host.find(']') + 1));
  return lower_case(host.substr(0, host.find(':')));
}

double gmacs_of(const Job& job) {
  double sum = 0;
  for (const auto& image : job.images()) {
    if (image) sum += image->record["executed_gmacs"].get<double>();
  }
  return sum;
}

}  // namespace

bool is_loopback(std::string_view host) {
  // As a number: a stranger's name may begin with 127., too.
  in_addr address{};
  return host == "localhost" || host == "::1" ||
         (::inet_pton(AF_INET, std::string(host).c_str(), &address) == 1 &&
          ntohl(address.s_addr) >> 24 == 127);
}

struct ServeRoutes::Call {
  const httplib::Request& request;
  httplib::Response& response;
  std::string client = {};  // whose turns its orders take

  void reply(const json& body, int status = 200) const {
    response.status = status;
    response.set_content(json_text(body) + "\n", "application/json");
  }
  /// Pictures by address begin with it.
  std::string base() const {
    const std::string host = request.get_header_value("Host");
    const bool secure = request.get_header_value("X-Forwarded-Proto") == "https";  // of a proxy
    return host.empty() ? "" : (secure ? "https://" : "http://") + host;
  }
  /// A body of JSON. Browsers send other kinds from any page without asking; this one they must ask for.
  void needs_json() const {
    const std::string kind = lower_case(request.get_header_value("Content-Type"));
    if (kind.substr(0, kind.find(';')) != "application/json")
      throw Refusal(415,
                    fmt::format("the body's Content-Type is {}; application/json is wanted", quote(kind)));
  }
};

ServeRoutes::ServeRoutes(HttpListener& listener, const RouteOptions& options)
    : listener_(listener), options_(options) {
  page_policy_ = fmt::format(
      "default-src 'self'; img-src 'self' data: blob:; script-src {}; style-src {}; "
      "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
      policy_hash(kServePage, "<script>", "</script>"), policy_hash(kServePage, "<style>", "</style>"));
  const auto handler = [this](const httplib::Request& request, httplib::Response& response) {
    answer(request, response);
  };
  const std::string any = "[^]*";
  listener.Get(any, handler);
  listener.Post(any, handler);
  listener.Put(any, handler);
  listener.Patch(any, handler);
  listener.Delete(any, handler);
  listener.Options(any, handler);
  // What httplib itself refuses.
  listener.set_error_handler([](const httplib::Request&, httplib::Response& response) {
    if (!response.body.empty()) return;
    const std::string what = response.status == 413   ? "the body is too large; 1 MiB is allowed"
                             : response.status == 414 ? "the address is too long"
                                                      : "this is no HTTP request that is understood here";
    response.set_content(json_text(error_answer(Refusal(response.status, what))) + "\n", "application/json");
  });
  listener.set_logger(
      [this](const httplib::Request& request, const httplib::Response& response) { log(request, response); });
}

Service& ServeRoutes::service() const {
  if (Service* service = service_) return *service;
  Refusal loading(503, "the models are being loaded");
  loading.retry_after = 1;
  throw loading;
}

std::optional<Refusal> ServeRoutes::forbidden(Call& call) const {
  const httplib::Request& request = call.request;
  // A page of a stranger whose name was pointed at this machine must not reach us.
  if (options_.loopback) {
    const std::string host = host_name(request.get_header_value("Host"));
    if (!is_loopback(host) && host != "[::1]" && host != lower_case(options_.host))
      return Refusal(403, fmt::format("Host is {}; this server is for this machine alone: call it localhost",
                                      quote(host)));
  }
  call.client = request.remote_addr;
  if (options_.api_keys.empty() || call.request.path == "/" || call.request.path == "/health") return {};
  constexpr std::string_view kBearer = "Bearer ";
  const std::string header = request.get_header_value("Authorization");
  int number = 0;
  if (header.starts_with(kBearer)) {
    const std::string_view key = std::string_view(header).substr(kBearer.size());
    for (size_t i = 0; i < options_.api_keys.size(); ++i) {  // all of them, whichever fits
      if (same_secret(options_.api_keys[i], key)) number = static_cast<int>(i) + 1;
    }
  }
  if (number == 0)
    return Refusal(401, header.empty() ? "an API key is wanted: Authorization: Bearer KEY"
                                       : "this API key is none of ours");
  call.client = fmt::format("key {}", number);
  return {};
}

void ServeRoutes::answer(const httplib::Request& request, httplib::Response& response) {
  told = {};
  Call call{request, response};
  if (!options_.cors.empty()) {
    response.set_header("Access-Control-Allow-Origin", options_.cors);
    response.set_header("Vary", "Origin");
  }
  response.set_header("X-Content-Type-Options", "nosniff");
  response.set_header("Cache-Control", "no-store");
  try {
    if (request.method == "OPTIONS") {
      if (!options_.cors.empty()) {
        response.set_header("Access-Control-Allow-Methods", "GET, POST, DELETE");
        response.set_header("Access-Control-Allow-Headers", "Authorization, Content-Type");
      }
      response.status = 204;
      return;
    }
    if (const auto refusal = forbidden(call)) throw *refusal;
    told.client = call.client;
    dispatch(call);
  } catch (const Refusal& refusal) {
    if (refusal.retry_after) response.set_header("Retry-After", fmt::format("{}", *refusal.retry_after));
    if (refusal.status == 401) response.set_header("WWW-Authenticate", "Bearer");
    call.reply(error_answer(refusal), refusal.status);
  } catch (const std::bad_alloc&) {
    call.reply(error_answer(Refusal(503, "there is not enough memory for this now")), 503);
  } catch (const std::exception& error) {
    call.reply(error_answer(Refusal(500, error.what())), 500);
  }
}

void ServeRoutes::dispatch(Call& call) {
  const std::string& path = call.request.path;
  const std::string method = call.request.method == "HEAD" ? "GET" : call.request.method;
  struct Route {
    std::string_view method, path;
    std::function<void()> answer;
  };
  const std::vector<Route> routes = {
      {"GET", "/",
       [&] {
         call.response.set_header("Content-Security-Policy", page_policy_);
         call.response.set_header("Referrer-Policy", "no-referrer");
         call.response.set_content(std::string(kServePage), "text/html; charset=utf-8");
       }},
      {"GET", "/health",
       [&] {
         const bool draining = service().numbers().draining;
         call.reply({{"status", draining ? "draining" : "ok"}}, draining ? 503 : 200);
       }},
      {"GET", "/version", [&] { call.response.set_content(options_.version + "\n", "application/json"); }},
      {"GET", "/metrics",
       [&] {
         Service& ready = service();
         const std::lock_guard lock(mutex_);
         call.response.set_content(metrics_text(ready, counts_, listener_.connections()),
                                   "text/plain; version=0.0.4");
       }},
      {"GET", "/v1/models", [&] { call.reply(models_answer(service())); }},
      {"GET", "/v1/status", [&] { call.reply(status_answer(service())); }},
      {"GET", "/v1/plan",
       [&] {
         const httplib::Request& request = call.request;
         call.reply(plan_answer(service(), request.get_param_value("model"),
                                request.get_param_value("num_inference_steps"),
                                request.get_param_value("sampler")));
       }},
      {"POST", "/v1/images/generations", [&] { generations(call); }},
      {"POST", "/v1/jobs", [&] { new_job(call); }},
      {"POST", "/sdapi/v1/txt2img", [&] { txt2img(call); }},
      {"GET", "/sdapi/v1/progress", [&] { call.reply(progress_answer(service(), call.client)); }},
      {"GET", "/sdapi/v1/samplers",
       [&] {
         std::set<std::string> possible;  // of some model here
         for (const ModelTerms& terms : service().terms())
           for (std::string& name : samplers_of(terms.few_step, terms.config.objective))
             possible.insert(std::move(name));
         json samplers = json::array();
         for (const auto& entry : kWebUiSamplerNames.entries) {
           const std::string name(kSamplerNames[entry.value]);
           if (possible.contains(name))
             samplers.push_back({{"name", entry.name}, {"aliases", {name}}, {"options", json::object()}});
         }
         call.reply(samplers);
       }},
      {"GET", "/sdapi/v1/sd-models",
       [&] {
         json models = json::array();
         for (const auto& model : service().models())
           models.push_back({{"title", model->name},
                             {"model_name", model->name},
                             {"hash", model->checkpoint.sha256.substr(0, 10)},
                             {"sha256", model->checkpoint.sha256},
                             {"filename", model->checkpoint.path.filename().string()}});
         call.reply(models);
       }},
      {"GET", "/sdapi/v1/options",
       [&] {
         call.reply({{"sd_model_checkpoint", service().terms()[0].name}, {"samples_format", "png"}});
       }},
      {"POST", "/sdapi/v1/interrupt",
       [&] {
         for (const auto& job : service().jobs_of(call.client)) service().cancel(*job);
         call.reply(json::object());
       }},
  };
  bool known = false;
  for (const Route& route : routes) {
    if (route.path != path) continue;
    told.route = route.path;
    known = true;
    if (route.method == method) return route.answer();
  }
  constexpr std::string_view kJobs = "/v1/jobs/", kFiles = "/v1/files/", kCancel = "/cancel";
  if (path.starts_with(kFiles) && method == "GET") {
    told.route = "/v1/files/{name}";
    std::string bytes = picture_of(service(), std::string_view(path).substr(kFiles.size()));
    return call.response.set_content(bytes, "image/png");
  }
  if (path.starts_with(kJobs)) {
    std::string id = path.substr(kJobs.size());
    const bool cancels = id.ends_with(kCancel);
    if (cancels) id.resize(id.size() - kCancel.size());
    told.route = cancels ? "/v1/jobs/{id}/cancel" : "/v1/jobs/{id}";
    if (cancels ? method == "POST" : method == "GET" || method == "DELETE")
      return job(call, id, cancels || method == "DELETE");
    known = true;
  }
  if (known)
    throw Refusal(405, fmt::format("{} is not for {}; docs/serve.md lists the routes", printable(path),
                                   printable(method)));
  throw Refusal(404, fmt::format("there is no route {}; docs/serve.md lists them", quote(path)));
}

// Until the job has ended; a client that leaves takes it along.
void ServeRoutes::await(const std::shared_ptr<Job>& job) {
  while (!job->wait(Clock::now() + kLook)) {
    if (HttpListener::client_left()) service().cancel(*job);
    job->expire(Clock::now());
  }
  told.job = job->id;
  told.gmacs = gmacs_of(*job);
  if (const auto failure = job->failure()) throw *failure;
}

void ServeRoutes::generations(Call& call) {
  call.needs_json();
  Service& service = this->service();
  Order order = read_generation(call.request.body, service.terms(), service.options().rules);
  const bool streams = order.stream, keep = order.url;
  told.user = order.user;
  const std::shared_ptr<Job> job = service.submit(std::move(order), call.client, keep);
  if (streams) return stream(call, job);
  await(job);
  call.reply(images_answer(*job, call.base()));
}

void ServeRoutes::stream(Call& call, const std::shared_ptr<Job>& job) {
  told.job = job->id;
  call.response.set_header("X-Accel-Buffering", "no");
  call.response.set_chunked_content_provider(
      "text/event-stream",
      [this, job, next = size_t{0}, spoken = Clock::now()](size_t, httplib::DataSink& sink) mutable {
        const auto say = [&](const std::string& text) {
          spoken = Clock::now();
          return sink.write(text.data(), text.size());
        };
        const auto event = job->event(next, Clock::now() + kLook);
        if (event) {
          ++next;
          return say(stream_event(*job, *event));
        }
        if (HttpListener::client_left()) {
          service().cancel(*job);
          return false;
        }
        job->expire(Clock::now());
        if (job->status().ended() && !job->event(next, Clock::now())) {
          told.gmacs = gmacs_of(*job);
          if (const auto failure = job->failure()) say(stream_error(*failure));
          sink.done();
          return true;
        }
        if (job->order.progress && Clock::now() - spoken >= kProgress)
          return say(stream_progress(service(), *job));
        return Clock::now() - spoken < kComment || say(": still here\n\n");
      },
      [this, job](bool) { service().cancel(*job); });  // where it has not ended
}

void ServeRoutes::new_job(Call& call) {
  call.needs_json();
  Service& service = this->service();
  Order order = read_generation(call.request.body, service.terms(), service.options().rules);
  told.user = order.user;
  if (order.stream)
    throw Refusal(400, "request: a job is asked for its state; stream is for the other route", "stream");
  const std::shared_ptr<Job> job = service.submit(std::move(order), call.client, /*keep=*/true);
  told.job = job->id;
  call.response.set_header("Location", "/v1/jobs/" + job->id);
  call.reply(job_answer(service, *job, call.base()), 202);
}

void ServeRoutes::job(Call& call, const std::string& id, bool cancel) {
  Service& service = this->service();
  const std::shared_ptr<Job> job = service.find(id);
  told.job = job->id;
  if (cancel) service.cancel(*job);
  job->expire(Clock::now());
  call.reply(job_answer(service, *job, call.base()));
}

void ServeRoutes::txt2img(Call& call) {
  call.needs_json();
  Service& service = this->service();
  Order order = read_txt2img(call.request.body, service.terms(), service.options().rules);
  const size_t model = order.model;
  const std::shared_ptr<Job> job = service.submit(std::move(order), call.client, /*keep=*/false);
  await(job);
  call.reply(txt2img_answer(*job, service.terms()[model], call.request.body));
}

void ServeRoutes::log(const httplib::Request& request, const httplib::Response& response) {
  {
    const std::lock_guard lock(mutex_);
    ++counts_[{told.route, response.status}];
  }
  if (options_.access_log)
    print_error(fmt::format("{} {} {} {} {} {:.3f} s {:.2f} GMACs {}",
                            told.client.empty() ? "-" : told.client, told.user.empty() ? "-" : told.user,
                            printable(request.method, 16), printable(request.path), response.status,
                            told.timer.seconds(), told.gmacs, told.job.empty() ? "-" : told.job));
  told = {};
}

}  // namespace dydit
