// JSON from outside within bounds, and the one way in which JSON is written.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace dydit {

/// The value of `text`; nullopt when it is not JSON or nests deeper than `max_depth` (a scalar has depth 0, a
/// list of scalars 1): what nests deeply takes the stack of whoever walks it.
std::optional<nlohmann::json> parse_json(std::string_view text, int max_depth);

/// The value of a whole text that a person may have written. Throws Error that begins with `name` and says
/// where the text is no JSON (a byte order mark, bytes that are no UTF-8, NaN), nests deeper than `max_depth`
/// or gives a key twice.
nlohmann::json read_json(std::string_view text, int max_depth, const std::string& name);

/// A number, without a point where it is whole.
nlohmann::json json_number(double value);

/// A value for a message, cut to about `longest` characters.
std::string shown(const nlohmann::json& value, size_t longest = 40);

/// One line of valid UTF-8 without control characters: bytes of a file name that are not UTF-8 are replaced.
std::string json_text(const nlohmann::json& value);
std::string json_text(const nlohmann::ordered_json& value);

}  // namespace dydit
