// Why a request is not served, as HTTP and OpenAI's API tell it.
#pragma once

#include <optional>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "dydit/base/error.h"

namespace dydit {

class Refusal : public Error {
 public:
  /// `status`: HTTP's. `param`: the field that is wrong; empty: none alone. `code`: a word for programs;
  /// empty: the status' own.
  Refusal(int status, const std::string& message, std::string param = "", std::string code = "");

  int status;
  std::string param, code;
  std::optional<int> retry_after = {};  // seconds
};

/// {"error": {message, type, param, code}}
nlohmann::json error_answer(const Refusal& refusal);

}  // namespace dydit
