// dydit serve over HTTP: who may ask, which route it is, what is answered.
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "console.h"
#include "dydit/serve/answers.h"
#include "dydit/serve/service.h"
#include "http_listener.h"

namespace dydit {

struct RouteOptions {
  bool loopback = true;               // bound to this machine alone: the Host header must name it
  std::string host;                   // as it was given
  std::vector<std::string> api_keys;  // none: nobody is asked for one
  std::string cors;                   // origin that may ask from a browser; empty: none
  bool access_log = false;
  std::string version;  // JSON, for /version
};

class ServeRoutes {
 public:
  /// Installs the handlers; both outlive the listener's serve().
  ServeRoutes(HttpListener& listener, const RouteOptions& options);

  /// From now on orders are taken; until then 503. The service outlives the listener's serve().
  void open(Service& service) { service_ = &service; }

 private:
  struct Call;  // a request being answered

  void answer(const httplib::Request& request, httplib::Response& response);
  void dispatch(Call& call);
  std::optional<Refusal> forbidden(Call& call) const;
  Service& service() const;

  void generations(Call& call);
  void txt2img(Call& call);
  void new_job(Call& call);
  void job(Call& call, const std::string& id, bool cancel);
  void await(const std::shared_ptr<Job>& job);
  void stream(Call& call, const std::shared_ptr<Job>& job);
  void log(const httplib::Request& request, const httplib::Response& response);

  HttpListener& listener_;
  const RouteOptions options_;
  std::atomic<Service*> service_ = nullptr;
  std::mutex mutex_;
  RequestCounts counts_;
  std::string page_policy_;  // Content-Security-Policy
};

/// The page (GET /), one HTML text; embedded by the build.
extern const std::string_view kServePage;

/// Whether only this machine reaches an address of this name.
bool is_loopback(std::string_view host);

}  // namespace dydit
