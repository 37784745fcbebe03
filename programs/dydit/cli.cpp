// CLI11, with the environment below the flags and above the file (config_file.h).
#include "cli.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include <fmt/ranges.h>

#include "config_file.h"
#include "dydit/base/error.h"
#include "dydit/base/isa.h"

namespace dydit {
namespace {

// --cfg-scale -> DYDIT_CFG_SCALE
std::string variable_name(std::string flag) {
  for (char& c : flag) c = c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return "DYDIT_" + flag;
}

}  // namespace

Cli::Cli(const std::string& verb, const std::string& description) : app(description, "dydit " + verb) {
  add_config_flag(app);
  app.get_formatter()->column_width(34);
  app.add_flag_callback(
      "-q,--quiet", [this] { verbosity = Verbosity::Quiet; }, "Print results and errors only");
  app.add_flag_callback(
      "-v,--verbose", [this] { verbosity = Verbosity::Verbose; }, "Say more");
  app.add_flag("--json", json, "Print exactly one JSON object on stdout, all else on stderr");
}

void Cli::parse(const std::vector<std::string>& args) {
  std::vector<std::string> reversed = with_environment(args);
  std::reverse(reversed.begin(), reversed.end());
  try {
    app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    write_out(app.help());
    throw HelpRequested();
  } catch (const CLI::ParseError& error) {
    throw UsageError(one_line(error, app));
  }
}

// Values of DYDIT_NAME become flags in front of the given ones, unless the flag itself is given.
std::vector<std::string> Cli::with_environment(const std::vector<std::string>& args) const {
  std::vector<std::string> result;
  for (const CLI::Option* option : app.get_options()) {
    const auto names = option->get_lnames();
    if (names.empty() || names[0] == "help" || names[0] == "config") continue;
    const char* value = std::getenv(variable_name(names[0]).c_str());
    const bool given = std::any_of(args.begin(), args.end(), [&](const std::string& arg) {
      const std::string name = arg.substr(0, arg.find('='));
      const auto is = [&](const std::string& dashes, const std::vector<std::string>& all) {
        return std::any_of(all.begin(), all.end(), [&](const std::string& n) {
          return dashes.size() == 1 ? arg.starts_with(dashes + n) && !arg.starts_with("--")
                                    : name == dashes + n;
        });
      };
      return is("--", names) || is("-", option->get_snames());
    });
    if (value && !given) result.push_back(fmt::format("--{}={}", names[0], value));
  }
  result.insert(result.end(), args.begin(), args.end());
  return result;
}

CLI::Option* Cli::add_choice(const std::string& names, std::string& value, std::vector<std::string> choices,
                             const std::string& help, std::vector<std::string> not_yet,
                             const std::string& way_out) {
  const std::string described = fmt::format("{} ({})", help, fmt::join(choices, ", "));
  return app.add_option(names, value, described)
      ->type_name("NAME")
      ->capture_default_str()
      ->check([=](const std::string& given) -> std::string {
        if (std::find(choices.begin(), choices.end(), given) != choices.end()) return "";
        const bool later = std::find(not_yet.begin(), not_yet.end(), given) != not_yet.end();
        return fmt::format(
            "{} is {}; choose from {}", given,
            later ? "not available in this version" + (way_out.empty() ? "" : " (" + way_out + ")")
                  : "unknown",
            fmt::join(choices, ", "));
      });
}

void Cli::add_threads(int& threads) {
  threads = physical_cores();
  app.add_option("-t,--threads", threads, "Threads; changes speed, never a result")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
}

}  // namespace dydit
