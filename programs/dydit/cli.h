// Command-line parts that every verb shares: options from flags, DYDIT_* variables and a TOML file; one-line
// usage errors; values that are refused by name.
#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "console.h"

namespace dydit {

/// One verb's command line. Order of precedence: default < --config file < DYDIT_* < flag.
class Cli {
 public:
  Cli(const std::string& verb, const std::string& description);

  /// Parses; throws UsageError with one line, or HelpRequested after printing the help.
  void parse(const std::vector<std::string>& args);

  /// A flag whose value is one of `choices`; `not_yet` values are known but refused by name,
  /// with the `way_out` where there is one.
  CLI::Option* add_choice(const std::string& names, std::string& value, std::vector<std::string> choices,
                          const std::string& help, std::vector<std::string> not_yet = {},
                          const std::string& way_out = "");
  /// --threads, default: the physical cores.
  void add_threads(int& threads);

  CLI::App app;
  Verbosity verbosity = Verbosity::Normal;
  bool json = false;  // one JSON object on stdout, everything else on stderr

 private:
  std::vector<std::string> with_environment(const std::vector<std::string>& args) const;
};

struct HelpRequested {};

}  // namespace dydit
