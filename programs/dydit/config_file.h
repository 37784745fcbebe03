// --config FILE: values from a TOML file, read by CLI11 within bounds, and what is wrong said in one line.
#pragma once

#include <string>
#include <string_view>

#include <CLI/CLI.hpp>

namespace dydit {

/// Adds the flag. The file's keys are the names of the other flags; a flag that is given beats the file.
void add_config_flag(CLI::App& app);

/// Takes the values of the file `name` that holds `text`. Throws UsageError that begins with `name`.
void take_config(CLI::App& app, std::string_view text, const std::string& name);

/// What CLI11 complains of, and the way out: "--steps: ...; see dydit generate --help".
std::string one_line(const CLI::ParseError& error, const CLI::App& app);

}  // namespace dydit
