#include "dydit/serve/refusal.h"

#include <array>
#include <utility>

#include <nlohmann/json.hpp>

namespace dydit {
namespace {

struct Status {
  int number;
  const char *type, *code;
};
constexpr std::array kStatuses = {Status{400, "invalid_request_error", "invalid_value"},
                                  Status{401, "authentication_error", "invalid_api_key"},
                                  Status{403, "permission_error", "forbidden"},
                                  Status{404, "not_found_error", "not_found"},
                                  Status{405, "invalid_request_error", "method_not_allowed"},
                                  Status{408, "invalid_request_error", "too_slow"},
                                  Status{410, "not_found_error", "gone"},
                                  Status{413, "invalid_request_error", "too_large"},
                                  Status{414, "invalid_request_error", "too_large"},
                                  Status{415, "invalid_request_error", "unsupported_media_type"},
                                  Status{429, "rate_limit_error", "queue_full"},
                                  Status{499, "cancelled_error", "cancelled"},
                                  Status{503, "server_error", "unavailable"},
                                  Status{504, "server_error", "timeout"}};

Status status_of(int number) {
  for (const Status& status : kStatuses) {
    if (status.number == number) return status;
  }
  return number < 500 ? Status{number, "invalid_request_error", "bad_request"}
                      : Status{number, "server_error", "internal_error"};
}

}  // namespace

Refusal::Refusal(int status, const std::string& message, std::string param, std::string code)
    : Error(message), status(status), param(std::move(param)), code(std::move(code)) {
  if (this->code.empty()) this->code = status_of(status).code;
}

nlohmann::json error_answer(const Refusal& refusal) {
  const nlohmann::json param = refusal.param.empty() ? nlohmann::json() : nlohmann::json(refusal.param);
  return {{"error",
           {{"message", refusal.what()},
            {"type", status_of(refusal.status).type},
            {"param", param},
            {"code", refusal.code}}}};
}

}  // namespace dydit
