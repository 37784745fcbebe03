// Command-line parts that every verb shares: options from flags, DYDIT_* variables and a TOML file; one-line
// usage errors; values that are refused by name; flags that would have no effect.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json_fwd.hpp>

#include "console.h"
#include "dydit/base/error.h"

namespace dydit {

/// One verb's command line. Order of precedence: default < --config file < DYDIT_* < flag.
class Cli {
 public:
  Cli(const std::string& verb, const std::string& description);

  /// Parses; throws UsageError with one line that names where the value came from, or HelpRequested after
  /// printing the help. With --verbose it says what was given, and where.
  void parse(const std::vector<std::string>& args);

  /// A number from `low` to `high`, written in decimal and as a whole: NaN, infinity, text after it and, for
  /// whole numbers, points and exponents are refused. The help shows a default that is within the range.
  template <typename T>  // int, long, uint64_t, float or double
  CLI::Option* add_number(const std::string& names, T& value, std::type_identity_t<T> low,
                          std::type_identity_t<T> high, const std::string& help);
  /// As many numbers as `values` has, with commas between.
  CLI::Option* add_numbers(const std::string& names, std::vector<double>& values, double low, double high,
                           const std::string& help);
  /// 0 to 2^64 - 1.
  CLI::Option* add_seed(const std::string& names, uint64_t& value, const std::string& help) {
    return add_number(names, value, 0, std::numeric_limits<uint64_t>::max(), help);
  }
  /// Any text but the empty one.
  CLI::Option* add_text(const std::string& names, std::string& value, const std::string& help);
  /// On when it is given.
  CLI::Option* add_switch(const std::string& names, bool& value, const std::string& help);
  /// A flag whose value is one of `choices`; `not_yet` values are known but refused by name,
  /// with the `way_out` where there is one.
  CLI::Option* add_choice(const std::string& names, std::string& value, std::vector<std::string> choices,
                          const std::string& help, std::vector<std::string> not_yet = {},
                          const std::string& way_out = "");
  /// --threads, default: the physical cores. `effect`: what another number changes.
  void add_threads(int& threads, const std::string& effect = "changes speed, never a result");
  /// Remembers the default of an option that `app` itself added; the functions above do so.
  template <typename T>
  void keep_default(const CLI::Option* option, T& value) {
    defaults_[option] = [&value, before = value] { value = before; };
  }

  // After parse(), by any name of the flag ("--steps"):

  bool given(const std::string& name) const;
  /// Says what a flag needs to have an effect. Given in vain by hand or in the file it is a UsageError
  /// ("--eta 0.5: needs --sampler ddim"); from the environment, which is for many runs, it goes back to its
  /// default with a note. Called where `met` is known: after parsing, or with the model at hand.
  void needs(const std::string& name, bool met, const std::string& what);
  /// At most one of two: of two from one place a UsageError, else the stronger one counts and the other is
  /// passed over with a note.
  void one_of(const std::string& first, const std::string& second);
  /// The words of a command line of this verb but for these flags and their values.
  std::vector<std::string> without(const std::vector<std::string>& args,
                                   const std::vector<std::string>& flags) const;
  /// How a message calls a flag: "--steps", "DYDIT_STEPS: --steps", "run.toml: --steps".
  std::string named(const std::string& name) const;
  /// Does `work` with the flag's value; what is wrong with it names the flag first.
  template <typename Work>
  void within(const std::string& name, const Work& work) const {
    try {
      work();
    } catch (const UsageError& error) {
      throw UsageError(named(name) + ": " + error.what());
    }
  }
  /// The result on stdout: with --json this object, else what `for_people` prints.
  void print(const nlohmann::json& result, const std::function<void()>& for_people) const;

  CLI::App app;
  Console console;
  bool verbose = false;
  bool json = false;  // one JSON object on stdout, everything else on stderr

 private:
  enum class Source { None, File, Variable, Flag };  // the weakest first
  const CLI::Option* option_of(const std::string& word) const;
  void look_at_words(const std::vector<std::string>& args);
  std::vector<std::string> variables();
  void tell_near_misses();
  Source source(const CLI::Option* option) const;
  std::string described(const CLI::Option* option) const;
  void drop(CLI::Option* option, const std::string& why);

  std::map<const CLI::Option*, std::function<void()>> defaults_;  // puts the default back
  std::map<const CLI::Option*, std::string> variables_;           // those that gave a value
  std::map<const CLI::Option*, int> words_;                       // flags among the arguments
};

struct HelpRequested {};

/// "20,10" -> {20, 10}; an empty text is an empty list. Throws UsageError for what is no whole number.
std::vector<int> whole_numbers(std::string_view list);

}  // namespace dydit
