// The program: a table of verbs, and the one place where errors end.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include <ATen/Version.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/headeronly/version.h>

#include "cli.h"
#include "dydit/base/error.h"
#include "dydit/pipeline/record.h"
#include "dydit_commit.h"
#include "verbs.h"

namespace dydit {
namespace {

struct Verb {
  std::string_view name;
  int (*run)(const Args&, Isa);  // null: planned, refused by name
  std::string_view help;
};

constexpr std::array kVerbs = {
    Verb{"generate", run_generate, "make images (or latents) from a checkpoint, with their cost"},
    Verb{"inspect", run_inspect, "say what a checkpoint, PNG, npz or event file holds"},
    Verb{"verify", run_verify, "replay recorded vectors of the original code and compare"},
    Verb{"convert", run_convert, "write a checkpoint in another format"},
    Verb{"train", run_train, "train a static DiT"},
    Verb{"finetune", run_finetune, "fine-tune a static DiT into a dynamic one"},
    Verb{"bench", run_bench, "time a model, and how much of the saved work is saved time"},
    Verb{"evaluate", run_evaluate, "measure a model on held-out images"},
    Verb{"latents", nullptr, ""},
    Verb{"report", nullptr, ""},
    Verb{"serve", nullptr, ""},
};

constexpr int kExitFailed = 1, kExitUsage = 2, kExitCancelled = 130;

void print_usage(std::FILE* stream) {
  fmt::print(stream, "dydit {}: dynamic diffusion transformers\n\nusage: dydit VERB [options]\n\n", kVersion);
  for (const Verb& verb : kVerbs) {
    if (verb.run) fmt::print(stream, "  {:<10}{}\n", verb.name, verb.help);
  }
  fmt::print(stream,
             "\ndydit VERB --help lists a verb's options; dydit --version says what this build is.\n");
}

std::string isa_cap() {
  const char* cap = std::getenv("DYDIT_ISA");
  return cap ? cap : "";
}

// "Intel(R) MKL-DNN v3.10.2 (Git Hash ...)" -> "3.10.2"
std::string onednn_version() {
  const std::string text = at::get_mkldnn_version();
  const size_t at = text.find(" v");
  return at == std::string::npos ? "none" : text.substr(at + 2, text.find(' ', at + 2) - at - 2);
}

// What a bug report needs: this build, its libraries, and the instructions a run would use.
int print_version(const Args& args) {
  const bool as_json = args == Args{"--json"};
  DYDIT_USAGE_CHECK(args.empty() || as_json, "--version goes alone or with --json; see dydit --help");
  // Not capped: tell what there is, even on a processor that the verbs refuse.
  const Isa isa = isa_cap().empty() ? detect_isa() : apply_isa_cap(isa_cap());
  const nlohmann::ordered_json version = {{"version", kVersion},
                                          {"commit", kCommit},
                                          {"libtorch", TORCH_VERSION},
                                          {"onednn", onednn_version()},
                                          {"isa", isa_name(isa)}};
  if (as_json) {
    fmt::print("{}\n", version.dump());
    return 0;
  }
  fmt::print("dydit {}\n", kVersion);
  for (const auto& [key, value] : version.items()) {
    if (key != "version") fmt::print("{:<10}{}\n", key, value.get<std::string>());
  }
  return 0;
}

int dispatch(const std::string& name, const Args& args) {
  for (const Verb& verb : kVerbs) {
    if (verb.name != name) continue;
    DYDIT_USAGE_CHECK(verb.run, "{}: not available in this version; see dydit --help", name);
    return verb.run(args, apply_isa_cap(isa_cap()));
  }
  throw UsageError(fmt::format("{}: no such verb; see dydit --help", name));
}

// LibTorch's messages carry a stack trace; the first line says what happened.
std::string first_line(std::string_view text) { return std::string(text.substr(0, text.find('\n'))); }

int run(int argc, char** argv) {
  if (argc < 2) {
    print_usage(stderr);
    return kExitUsage;
  }
  const std::string name = argv[1];
  if (name == "--help" || name == "-h" || name == "help") {
    print_usage(stdout);
    return 0;
  }
  const Args args(argv + 2, argv + argc);
  try {
    return name == "--version" ? print_version(args) : dispatch(name, args);
  } catch (const HelpRequested&) {
    return 0;
  } catch (const Cancelled&) {
    return kExitCancelled;
  } catch (const UsageError& error) {
    fmt::print(stderr, "dydit: error: {}\n", error.what());
    return kExitUsage;
  } catch (const c10::Error& error) {
    fmt::print(stderr, "dydit: error: {}\n", first_line(error.what_without_backtrace()));
  } catch (const std::exception& error) {
    fmt::print(stderr, "dydit: error: {}\n", first_line(error.what()));
  }
  return kExitFailed;
}

}  // namespace
}  // namespace dydit

int main(int argc, char** argv) { return dydit::run(argc, argv); }
