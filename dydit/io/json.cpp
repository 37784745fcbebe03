#include "dydit/io/json.h"

#include <algorithm>
#include <set>
#include <vector>

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/io/text.h"

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

nlohmann::json read_json(std::string_view text, int max_depth, const std::string& name) {
  using Event = nlohmann::json::parse_event_t;
  checked_text(text, name);
  DYDIT_CHECK(!text.starts_with("\xEF\xBB\xBF"),
              "{}: begins with a byte order mark; save it as UTF-8 without", name);
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto filter = [&](int depth, Event event, nlohmann::json& value) {
    if (event == Event::object_start || event == Event::array_start) {
      DYDIT_CHECK(depth < max_depth, "{}: nests deeper than {} levels", name, max_depth);
    }
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key) {
      const auto& key = value.get_ref<const std::string&>();
      DYDIT_CHECK(keys.back().insert(key).second, "{}: key {} is given twice in one object", name,
                  quote(key));
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, filter);
  } catch (const nlohmann::json::parse_error& error) {
    const size_t at = std::min(error.byte > 0 ? error.byte - 1 : 0, text.size());
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
    throw Error(fmt::format(
        "{}: line {} is not JSON {}", name, line,
        at == text.size() ? "yet where the text ends" : "from " + quote(text.substr(at, 20)) + " on"));
  } catch (const nlohmann::json::exception&) {
    throw Error(fmt::format("{}: a number is too large", name));
  }
}

std::string shown(const nlohmann::json& value, size_t longest) {
  return printable(json_text(value), longest);
}

std::string json_text(const nlohmann::json& value) { return text_of(value); }
std::string json_text(const nlohmann::ordered_json& value) { return text_of(value); }

}  // namespace dydit
