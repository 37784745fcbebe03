#include "dydit/io/json.h"

#include <fmt/format.h>

namespace dydit {
namespace {

// JSON itself escapes what is below 0x20; a terminal obeys more than that, and only strings hold such bytes.
std::string without_controls(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const unsigned next = i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0;
    if (byte == 0x7F) {
      out += "\\u007f";
    } else if (byte == 0xC2 && next < 0xA0) {
      out += fmt::format("\\u{:04x}", next);
      ++i;
    } else {
      out += text[i];
    }
  }
  return out;
}

template <typename Json>
std::string text_of(const Json& value) {
  return without_controls(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace

std::optional<nlohmann::json> parse_json(std::string_view text, int max_depth) {
  using Event = nlohmann::json::parse_event_t;
  bool deep = false;
  const auto shallow = [&](int depth, Event event, nlohmann::json&) {
    if ((event == Event::object_start || event == Event::array_start) && depth >= max_depth) deep = true;
    return !deep;
  };
  nlohmann::json value = nlohmann::json::parse(text, shallow, /*allow_exceptions=*/false);
  if (deep || value.is_discarded()) return std::nullopt;
  return value;
}

std::string json_text(const nlohmann::json& value) { return text_of(value); }
std::string json_text(const nlohmann::ordered_json& value) { return text_of(value); }

}  // namespace dydit
