#include "dydit/io/json_object.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "dydit/base/error.h"
#include "dydit/base/nearest.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

constexpr size_t kMaxTextBytes = 1024;
constexpr size_t kLongestKey = 64;  // of which the nearest known one is sought

}  // namespace

using Json = nlohmann::json;

bool is_whole(const Json& value, int wanted) { return value.is_number_integer() && value == wanted; }

JsonObject::JsonObject(const Json& value, std::string at, std::span<const std::string> known)
    : value_(value), at_(std::move(at)) {
  DYDIT_CHECK(value.is_object(), "{}: is {}; an object {{...}} is wanted", at_, shown(value));
  for (const auto& [key, unused] : value.items()) {
    DYDIT_CHECK(std::find(known.begin(), known.end(), key) != known.end(),
                "{}: key {} is unknown; did you mean {}?", at_, quote(key),
                nearest_name(std::string_view(key).substr(0, kLongestKey), known));
  }
}

const Json* JsonObject::find(const char* key) const {
  const auto found = value_.find(key);
  return found == value_.end() ? nullptr : &*found;
}

const Json& JsonObject::get(const char* key) const {
  const Json* found = find(key);
  DYDIT_CHECK(found, "{}: {} is missing", at_, key);
  return *found;
}

int JsonObject::whole(const Json& value, const char* key, int low, int high) const {
  const bool fits = value.is_number_unsigned() ? value.get<uint64_t>() <= uint64_t{kMost}
                                               : value.is_number_integer() && value.get<int64_t>() >= kLeast;
  DYDIT_CHECK(fits, "{}: {} is {}; a whole number below 2^31 is wanted", at_, key, shown(value));
  const int number = value.get<int>();
  DYDIT_CHECK(number >= low && number <= high, "{}: {} is {}; {} to {} is wanted", at_, key, number, low,
              high);
  return number;
}

std::optional<float> JsonObject::real(const char* key) const {
  const Json* value = find(key);
  if (!value) return std::nullopt;
  DYDIT_CHECK(value->is_number() && std::abs(value->get<double>()) <= std::numeric_limits<float>::max(),
              "{}: {} is {}; a number is wanted", at_, key, shown(*value));
  return value->get<float>();
}

bool JsonObject::truth(const char* key) const {
  const Json* value = find(key);
  DYDIT_CHECK(!value || value->is_boolean(), "{}: {} is {}; true or false is wanted", at_, key,
              shown(*value));
  return value && value->get<bool>();
}

std::optional<std::string> JsonObject::text(const char* key) const {
  const Json* value = find(key);
  if (!value) return std::nullopt;
  return text(*value, key);
}

std::string JsonObject::text(const Json& value, const char* key) const {
  DYDIT_CHECK(value.is_string(), "{}: {} is {}; a text is wanted", at_, key, shown(value));
  const auto& text = value.get_ref<const std::string&>();
  DYDIT_CHECK(text.size() <= kMaxTextBytes && printable(text, text.npos) == text,
              "{}: {} is {}; at most {} bytes without control characters are wanted", at_, key, quote(text),
              kMaxTextBytes);
  return text;
}

const Json& JsonObject::list(const Json& value, const char* key) const {
  DYDIT_CHECK(value.is_array(), "{}: {} is {}; a list [...] is wanted", at_, key, shown(value));
  return value;
}

}  // namespace dydit
