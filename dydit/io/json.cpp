#include "dydit/io/json.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <utility>
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

// Sees a text go by before anything is made of it. (A filter of the parser itself looks at all elements of a
// list each time one ends.)
class Watch : public nlohmann::json::json_sax_t {
 public:
  // enter(depth) whenever an object or a list opens: false ends the parse.
  Watch(std::function<bool(int depth)> enter, std::function<void(const std::string&)> on_key)
      : enter_(std::move(enter)), on_key_(std::move(on_key)) {}

  std::function<void(bool begins)> on_object;

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override {
    if (!enter_(depth_++)) return false;
    if (on_object) on_object(true);
    return true;
  }
  bool key(string_t& text) override {
    if (on_key_) on_key_(text);
    return true;
  }
  bool end_object() override {
    --depth_;
    if (on_object) on_object(false);
    return true;
  }
  bool start_array(size_t) override { return enter_(depth_++); }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }

 private:
  std::function<bool(int)> enter_;
  std::function<void(const std::string&)> on_key_;
  int depth_ = 0;
};

template <typename Json>
std::string text_of(const Json& value) {
  return without_controls(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace

std::optional<nlohmann::json> parse_json(std::string_view text, int max_depth) {
  Watch watch([&](int depth) { return depth < max_depth; }, nullptr);
  if (!nlohmann::json::sax_parse(text, &watch)) return std::nullopt;
  return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
}

nlohmann::json read_json(std::string_view text, int max_depth, const std::string& name) {
  checked_text(text, name);
  DYDIT_CHECK(!text.starts_with("\xEF\xBB\xBF"),
              "{}: begins with a byte order mark; save it as UTF-8 without", name);
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  Watch watch(
      [&](int depth) {
        DYDIT_CHECK(depth < max_depth, "{}: nests deeper than {} levels", name, max_depth);
        return true;
      },
      [&](const std::string& key) {
        DYDIT_CHECK(keys.back().insert(key).second, "{}: key {} is given twice in one object", name,
                    quote(key));
      });
  watch.on_object = [&](bool begins) {
    if (begins) {
      keys.emplace_back();
    } else {
      keys.pop_back();
    }
  };
  nlohmann::json::sax_parse(text, &watch);  // what is no JSON is told below
  try {
    return nlohmann::json::parse(text);
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

nlohmann::json json_number(double value) {
  constexpr double kMost = 1e15;  // whole numbers up to there are exact
  if (std::abs(value) < kMost && value == std::floor(value)) return static_cast<int64_t>(value);
  return value;
}

std::string shown(const nlohmann::json& value, size_t longest) {
  return printable(json_text(value), longest);
}

std::string json_text(const nlohmann::json& value) { return text_of(value); }
std::string json_text(const nlohmann::ordered_json& value) { return text_of(value); }

}  // namespace dydit
