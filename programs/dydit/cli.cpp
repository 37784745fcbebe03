// CLI11, with the environment below the flags and above the file (config_file.h).
#include "cli.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <unistd.h>

#include <fmt/ranges.h>

#include "config_file.h"
#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/base/nearest.h"
#include "dydit/base/numbers.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

constexpr std::string_view kPrefix = "DYDIT_";

// cfg-scale -> DYDIT_CFG_SCALE
std::string variable_name(std::string flag) {
  for (char& c : flag) c = c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return std::string(kPrefix) + flag;
}

// Empty when `text` is a number from low to high; CLI11 2.1 wraps negative ones, cuts large ones, reads 010
// as eight and lets NaN through any range.
template <typename T>
std::string take_number(std::string_view text, T& value, T low, T high) {
  const auto number = parse_number<T>(text.substr(text.starts_with('+') ? 1 : 0));
  if (number && *number >= low && *number <= high) {
    value = *number;
    return "";
  }
  return fmt::format("{}: expected a {}number from {} to {}", text, std::is_integral_v<T> ? "whole " : "",
                     low, high);
}

template <typename T>
std::string type_text(T low, T high) {
  if constexpr (std::is_same_v<T, uint64_t>) return "UINT";
  return fmt::format("{} in [{} - {}]", std::is_integral_v<T> ? "INT" : "FLOAT", low, high);
}

bool is_switch(const CLI::Option* option) { return option->get_items_expected_max() == 0; }

}  // namespace

Cli::Cli(const std::string& verb, const std::string& description) : app(description, "dydit " + verb) {
  add_config_flag(app);
  app.get_formatter()->column_width(34);
  add_switch("-q,--quiet", console.quiet, "Print results and errors only");
  add_switch("-v,--verbose", verbose, "Say more: also which values were given, and where");
  add_switch("--json", json, "Print exactly one JSON object on stdout, all else on stderr");
}

void Cli::parse(const std::vector<std::string>& args) {
  look_at_words(args);
  std::vector<std::string> reversed;
  // A variable that is wrong must not stand between a person and the help.
  if (words_.count(app.get_help_ptr()) == 0) reversed = variables();
  reversed.insert(reversed.end(), args.begin(), args.end());
  std::reverse(reversed.begin(), reversed.end());
  try {
    app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    write_out(app.help());
    throw HelpRequested();
  } catch (const CLI::ParseError& error) {
    const std::string text = one_line(error, app);
    for (const auto& [option, variable] : variables_) {
      if (text.starts_with(option->get_name() + ":")) throw UsageError(variable + ": " + text);
    }
    throw UsageError(text);
  }
  one_of("--quiet", "--verbose");
  if (!verbose) return;
  std::vector<std::string> all;
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() > 0) all.push_back(described(option));
  }
  console.info(fmt::format("given    {}", fmt::join(all, ", ")));
  tell_near_misses();
}

// The option that an argument names: --steps, --steps=3, -n, -n3; null for a value.
const CLI::Option* Cli::option_of(const std::string& word) const {
  if (word.size() < 2 || word[0] != '-' || word == "--") return nullptr;
  return app.get_option_no_throw(word[1] == '-' ? word.substr(0, word.find('=')) : word.substr(0, 2));
}

// Notes which flags are given. CLI11 takes whatever follows a flag for its value, the next flag, too, and
// "--steps=" for "--steps".
void Cli::look_at_words(const std::vector<std::string>& args) {
  const CLI::Option* open = nullptr;  // waits for its value
  for (const std::string& word : args) {
    const CLI::Option* option = option_of(word);
    DYDIT_USAGE_CHECK(open == nullptr || option == nullptr,
                      "{}: expected a value, got the flag {}; see {} --help", open->get_name(), word,
                      app.get_name());
    open = nullptr;
    if (option == nullptr) continue;
    DYDIT_USAGE_CHECK(!word.starts_with("--") || !word.ends_with('=') || word.find('=') + 1 < word.size(),
                      "{}: expected a value after it; see {} --help", word, app.get_name());
    words_[option] += 1;
    std::string_view rest = word;
    while (!rest.starts_with("--") && is_switch(option) && rest.size() > 2) {  // -qn3
      rest.remove_prefix(1);
      option = option_of("-" + std::string(rest.substr(1)));
      if (option == nullptr) break;
      words_[option] += 1;
    }
    const bool whole = word.starts_with("--") ? word.find('=') == word.npos : rest.size() == 2;
    if (option != nullptr && option->get_expected_min() > 0 && whole) open = option;
  }
}

std::vector<std::string> Cli::without(const std::vector<std::string>& args,
                                      const std::vector<std::string>& flags) const {
  std::vector<std::string> words, left;
  for (const std::string& arg : args) {  // -qn3 as -q -n3
    std::string rest = arg;
    while (!rest.starts_with("--") && rest.size() > 2 && option_of(rest) != nullptr &&
           is_switch(option_of(rest))) {
      words.push_back(rest.substr(0, 2));
      rest = "-" + rest.substr(2);
    }
    words.push_back(rest);
  }
  for (size_t i = 0; i < words.size(); ++i) {
    const CLI::Option* option = option_of(words[i]);
    const bool named =
        option != nullptr && std::any_of(flags.begin(), flags.end(), [&](const std::string& flag) {
          return app.get_option_no_throw(flag) == option;
        });
    const bool whole =
        words[i].starts_with("--") ? words[i].find('=') == std::string::npos : words[i].size() == 2;
    if (!named) {
      left.push_back(words[i]);
    } else if (option->get_expected_min() > 0 && whole) {
      ++i;  // its value
    }
  }
  return left;
}

// Values of DYDIT_NAME as flags, unless the flag itself is given. An empty variable is none: that is how
// compose files and scripts unset one.
std::vector<std::string> Cli::variables() {
  std::vector<std::string> result;
  for (const CLI::Option* option : app.get_options()) {
    if (option == app.get_help_ptr() || words_.count(option) > 0) continue;
    for (const std::string& name : option->get_lnames()) {
      const std::string variable = variable_name(name);
      const char* value = std::getenv(variable.c_str());
      if (value == nullptr || *value == '\0' || variables_[option] == variable) continue;
      DYDIT_USAGE_CHECK(variables_[option].empty(), "{} and {}: both give {}; set one of them",
                        variables_[option], variable, option->get_name());
      DYDIT_USAGE_CHECK(printable(value, std::string::npos) == value,
                        "{}: {} is not UTF-8 or holds control characters; give it as {}", variable,
                        quote(value), option->get_name());
      variables_[option] = variable;
      result.push_back(fmt::format("--{}={}", name, value));
    }
    if (variables_[option].empty()) variables_.erase(option);
  }
  return result;
}

// Other variables may be another verb's or another program's; those that look like a slip are told.
void Cli::tell_near_misses() {
  std::vector<std::string> known = {"DYDIT_ISA"};
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) known.push_back(variable_name(name));
  }
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry, name = text.substr(0, text.find('='));
    if (!name.starts_with(kPrefix) || std::find(known.begin(), known.end(), name) != known.end()) continue;
    constexpr int kSlips = 2;
    const std::string nearest = nearest_name(name, known);
    if (edit_distance(name, nearest) <= kSlips)
      console.info(fmt::format("{}: not read; {} knows {}", name, app.get_name(), nearest));
  }
}

Cli::Source Cli::source(const CLI::Option* option) const {
  if (option->count() == 0) return Source::None;
  if (variables_.count(option) > 0) return Source::Variable;
  return words_.count(option) > 0 || option->get_positional() ? Source::Flag : Source::File;
}

bool Cli::given(const std::string& name) const {
  const CLI::Option* option = app.get_option(name);
  return option->count() > 0 && (!is_switch(option) || option->as<bool>());
}

std::string Cli::named(const std::string& name) const {
  const CLI::Option* option = app.get_option(name);
  const Source from = source(option);
  if (from == Source::Variable) return variables_.at(option) + ": " + name;
  if (from == Source::File) return app.get_config_ptr()->as<std::string>() + ": " + name;
  return name;
}

// "--steps 4", "--steps 4 (DYDIT_STEPS)"
std::string Cli::described(const CLI::Option* option) const {
  std::string text = option->get_name();
  if (!is_switch(option)) text += fmt::format(" {}", fmt::join(option->results(), ","));
  const Source from = source(option);
  if (from == Source::Variable) text += fmt::format(" ({})", variables_.at(option));
  if (from == Source::File) text += fmt::format(" ({})", app.get_config_ptr()->as<std::string>());
  return text;
}

void Cli::drop(CLI::Option* option, const std::string& why) {
  console.info(fmt::format("passed over: {}: {}", described(option), why));
  defaults_.at(option)();
  option->clear();
  variables_.erase(option);
}

void Cli::needs(const std::string& name, bool met, const std::string& what) {
  if (met || !given(name)) return;
  CLI::Option* option = app.get_option(name);
  const std::string why = "needs " + what;
  if (source(option) == Source::Variable) return drop(option, why);
  std::string text = named(option->get_name());
  if (!is_switch(option)) text += fmt::format(" {}", fmt::join(option->results(), ","));
  throw UsageError(fmt::format("{}: {}", text, why));
}

void Cli::one_of(const std::string& first, const std::string& second) {
  if (!given(first) || !given(second)) return;
  CLI::Option *a = app.get_option(first), *b = app.get_option(second);
  DYDIT_USAGE_CHECK(source(a) != source(b), "{} and {}: one excludes the other; give one of them",
                    named(first), named(second));
  CLI::Option* weaker = source(a) < source(b) ? a : b;
  drop(weaker, fmt::format("{} is given", (weaker == a ? b : a)->get_name()));
}

void Cli::print(const nlohmann::json& result, const std::function<void()>& for_people) const {
  if (!json) return for_people();
  print_out("{}\n", json_text(result));
}

template <typename T>
CLI::Option* Cli::add_number(const std::string& names, T& value, std::type_identity_t<T> low,
                             std::type_identity_t<T> high, const std::string& help) {
  CLI::Option* option = app.add_option(
      names,
      [&value, low, high](const CLI::results_t& given) {
        return take_number(given[0], value, low, high).empty();
      },
      help, /*defaulted=*/value >= low && value <= high, [&value] { return fmt::format("{}", value); });
  keep_default(option, value);
  return option->type_name(type_text(low, high))->check([low, high](const std::string& text) {
    T ignored;
    return take_number(text, ignored, low, high);
  });
}
template CLI::Option* Cli::add_number(const std::string&, int&, int, int, const std::string&);
template CLI::Option* Cli::add_number(const std::string&, long&, long, long, const std::string&);
template CLI::Option* Cli::add_number(const std::string&, uint64_t&, uint64_t, uint64_t, const std::string&);
template CLI::Option* Cli::add_number(const std::string&, float&, float, float, const std::string&);
template CLI::Option* Cli::add_number(const std::string&, double&, double, double, const std::string&);

CLI::Option* Cli::add_numbers(const std::string& names, std::vector<double>& values, double low, double high,
                              const std::string& help) {
  CLI::Option* option = app.add_option(
      names,
      [&values, low, high](const CLI::results_t& given) {
        for (size_t i = 0; i < given.size(); ++i) take_number(given[i], values.at(i), low, high);
        return true;  // their number and what they are has been looked at
      },
      help, /*defaulted=*/true, [&values] { return fmt::format("{}", fmt::join(values, ",")); });
  keep_default(option, values);
  return option->type_name("FLOAT,FLOAT")
      ->delimiter(',')
      ->expected(static_cast<int>(values.size()))
      ->check([low, high](const std::string& text) {
        double ignored;
        return take_number(text, ignored, low, high);
      });
}

CLI::Option* Cli::add_text(const std::string& names, std::string& value, const std::string& help) {
  CLI::Option* option = app.add_option(names, value, help);
  keep_default(option, value);
  if (!value.empty()) option->capture_default_str();
  return option->check([](const std::string& text) {
    return text.empty() ? "expected something, got nothing" : std::string();
  });
}

CLI::Option* Cli::add_switch(const std::string& names, bool& value, const std::string& help) {
  CLI::Option* option = app.add_flag(names, value, help);
  keep_default(option, value);
  return option;
}

CLI::Option* Cli::add_choice(const std::string& names, std::string& value, std::vector<std::string> choices,
                             const std::string& help, std::vector<std::string> not_yet,
                             const std::string& way_out) {
  const std::string described = fmt::format("{} ({})", help, fmt::join(choices, ", "));
  CLI::Option* option = app.add_option(names, value, described);
  keep_default(option, value);
  if (!value.empty()) option->capture_default_str();
  return option->type_name("NAME")->check([=](const std::string& given) -> std::string {
    if (std::find(choices.begin(), choices.end(), given) != choices.end()) return "";
    const bool later = std::find(not_yet.begin(), not_yet.end(), given) != not_yet.end();
    return fmt::format(
        "{} is {}; choose from {}", given,
        later ? "not available in this version" + (way_out.empty() ? "" : " (" + way_out + ")") : "unknown",
        fmt::join(choices, ", "));
  });
}

void Cli::add_threads(int& threads, const std::string& effect) {
  threads = default_threads();
  add_number("-t,--threads", threads, 1, 1024, "Threads; " + effect);
}

std::vector<int> whole_numbers(std::string_view list) {
  std::vector<int> numbers;
  if (list.empty()) return numbers;
  for (const std::string_view part : comma_parts(list)) {
    const auto number = parse_number<int>(part);
    DYDIT_USAGE_CHECK(number, "{} is no whole number", quote(part));
    numbers.push_back(*number);
  }
  return numbers;
}

}  // namespace dydit
