// Strict reading of a JSON object that a person may have written: an unknown key is an error, since a
// misspelt one would be a choice that is silently not made.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>

#include <nlohmann/json.hpp>

namespace dydit {

bool is_whole(const nlohmann::json& value, int wanted);

/// Every function throws Error that begins with the place where a value of another kind stands. The JSON
/// outlives it.
class JsonObject {
 public:
  /// `at`: where it stands. Keys beside `known` are refused.
  JsonObject(const nlohmann::json& value, std::string at, std::span<const std::string> known);

  const std::string& at() const { return at_; }
  /// Null where there is no such key.
  const nlohmann::json* find(const char* key) const;
  const nlohmann::json& get(const char* key) const;

  int whole(const char* key, int low = kLeast, int high = kMost) const {
    return whole(get(key), key, low, high);
  }
  int whole(const nlohmann::json& value, const char* key, int low = kLeast, int high = kMost) const;
  std::optional<float> real(const char* key) const;
  bool truth(const char* key) const;
  /// At most 1 KiB without control characters: it goes into records and messages.
  std::optional<std::string> text(const char* key) const;
  std::string text(const nlohmann::json& value, const char* key) const;
  const nlohmann::json& list(const nlohmann::json& value, const char* key) const;

 private:
  static constexpr int kLeast = std::numeric_limits<int>::min(), kMost = std::numeric_limits<int>::max();
  const nlohmann::json& value_;
  std::string at_;
};

}  // namespace dydit
