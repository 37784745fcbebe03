// CLI11 splits the lines; bounds, keys and values are ours, so that an error names the file and its line or
// key. The reader of CLI11 2.1 takes time and memory that grow with the square of the input.
#include "config_file.h"

#include <algorithm>
#include <memory>
#include <set>
#include <sstream>
#include <vector>

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

constexpr size_t kMaxConfigBytes = 32 << 10;
constexpr size_t kLongestMessage = 500;
constexpr int kMostDots = 200;  // CLI11 passes over keys of more parts than a byte counts
constexpr std::string_view kBlanks = " \t\v\f\r";

// CLI11 would cut a text at a #, whether it stands in quotes or not.
void check_quotes(std::string_view line, size_t number) {
  char open = '\0';  // the quote that is to be closed
  for (const char c : line) {
    if (open == '\0' && c == '#') break;
    if (c == '#')
      throw CLI::ConfigError(fmt::format("line {}: # inside quotes; give this as a flag", number));
    if (open == '\0' && (c == '"' || c == '\'')) {
      open = c;
    } else if (c == open) {
      open = '\0';
    }
  }
  if (open != '\0') throw CLI::ConfigError(fmt::format("line {}: a quote {} is not closed", number, open));
}

void check_text(std::string_view text) {
  if (text.size() > kMaxConfigBytes)
    throw CLI::ConfigError(fmt::format("has more than {} bytes; a few flags are wanted", kMaxConfigBytes));
  for (size_t begin = 0, number = 1; begin < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = trimmed(text.substr(begin, end - begin), kBlanks);
    begin = end + 1;
    if (line.starts_with('#') || line.starts_with(';')) continue;  // a comment to CLI11
    if (line.starts_with('[') && line.ends_with(']'))
      throw CLI::ConfigError(
          fmt::format("line {}: {}: there are no sections, and no lists in lists", number, quote(line)));
    if (std::count(line.begin(), line.end(), '.') > kMostDots)
      throw CLI::ConfigError(
          fmt::format("line {}: more than {} dots; keys are names of flags", number, kMostDots));
    check_quotes(line, number);
  }
}

CLI::Option* find_option(CLI::App& app, const CLI::ConfigItem& item) {
  if (!item.parents.empty()) return nullptr;  // a key with dots
  CLI::Option* option = app.get_option_no_throw("--" + item.name);
  if (option == nullptr && item.name.size() == 1) option = app.get_option_no_throw("-" + item.name);
  return option != nullptr ? option : app.get_option_no_throw(item.name);  // a positional one
}

void set_option(CLI::Option& option, const CLI::ConfigItem& item) {
  for (const std::string& input : item.inputs) {
    // CLI11 would take it apart again and again, one call within the other.
    if (input.starts_with('[') && input.ends_with(']'))
      throw CLI::ConfigError(fmt::format("{}: {}: there are no lists in lists", item.name, quote(input)));
  }
  if (option.get_expected_min() == 0) {
    option.add_result(option.get_flag_value(item.name, CLI::ConfigTOML().to_flag(item)));
  } else {
    option.add_result(item.inputs);
  }
  option.run_callback();
}

class ConfigFile : public CLI::ConfigTOML {
 public:
  explicit ConfigFile(CLI::App& app) : app_(app) {}

  // Called by CLI11 once the flags are known. Sets the options itself and leaves nothing over.
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    std::string text(kMaxConfigBytes + 1, '\0');
    input.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(input.gcount()));
    take_config(app_, text, app_.get_config_ptr()->as<std::string>());
    return {};
  }

 private:
  CLI::App& app_;
};

}  // namespace

void add_config_flag(CLI::App& app) {
  app.set_config("--config", "", "TOML file with the same names as the flags; unknown keys are errors");
  app.config_formatter(std::make_shared<ConfigFile>(app));
}

void take_config(CLI::App& app, std::string_view text, const std::string& name) {
  try {
    check_text(text);
    std::istringstream stream{std::string(text)};
    std::set<const CLI::Option*> taken;
    for (const CLI::ConfigItem& item : CLI::ConfigTOML().from_config(stream)) {
      CLI::Option* option = find_option(app, item);
      if (option == nullptr || !option->get_configurable())
        throw CLI::ConfigError(
            fmt::format("there is no key {}; keys are names of flags", quote(item.fullname())));
      if (!taken.insert(option).second)
        throw CLI::ConfigError(fmt::format("{} is there twice", quote(item.name)));
      if (option->empty()) set_option(*option, item);  // else a flag or a variable gave it
    }
  } catch (const CLI::ParseError& error) {
    throw UsageError(fmt::format("{}: {}", name, one_line(error, app)));
  }
}

std::string one_line(const CLI::ParseError& error, const CLI::App& app) {
  std::string text = error.what();
  std::replace(text.begin(), text.end(), '\n', ' ');
  while (text.ends_with(' ')) text.pop_back();
  return fmt::format("{}; see {} --help", printable(text, kLongestMessage), app.get_name());
}

}  // namespace dydit
