// The program: a table of verbs, and the one place where errors end.
#include <array>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <string_view>

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/base/error.h"
#include "dydit/base/isa.h"
#include "dydit/base/version.h"
#include "dydit/io/json.h"
#include "signals.h"
#include "streams.h"
#include "verbs.h"
#include "version_facts.h"

namespace dydit {
namespace {

struct Verb {
  std::string_view name;
  int (*run)(const Args&, Isa);
  std::string_view help;
};

constexpr std::array kVerbs = {
    Verb{"generate", run_generate, "make images (or latents) from a checkpoint, with their cost"},
    Verb{"decode", run_decode, "make images from latents that generate --latents wrote"},
    Verb{"inspect", run_inspect, "say what a checkpoint, autoencoder, plan, PNG, npz or event file holds"},
    Verb{"verify", run_verify, "replay recorded vectors of the original code and compare"},
    Verb{"convert", run_convert, "write a checkpoint in another format"},
    Verb{"quantize", run_quantize, "round a checkpoint's blocks to 8 bits"},
    Verb{"train", run_train, "train a static DiT"},
    Verb{"finetune", run_finetune, "fine-tune a static DiT into a dynamic one"},
    Verb{"bench", run_bench, "time a model, and how much of the saved work is saved time"},
    Verb{"calibrate", run_calibrate, "measure what plans of caches cost and change, for generate --budget"},
    Verb{"evaluate", run_evaluate, "measure a model on held-out images"},
    Verb{"latents", run_latents, "encode images into packed latents, to train on"},
    Verb{"report", run_report, "write one page (HTML, offline) about a model and what was measured of it"},
    Verb{"serve", run_serve, "answer over HTTP: one engine, many people, every image the same as alone"},
};

constexpr int kExitFailed = 1, kExitUsage = 2, kExitCancelled = 130;

std::string usage() {
  std::string text =
      fmt::format("dydit {}: dynamic diffusion transformers\n\nusage: dydit VERB [options]\n\n", kVersion);
  for (const Verb& verb : kVerbs) {
    text += fmt::format("  {:<11}{}\n", verb.name, verb.help);
  }
  return text + "\ndydit VERB --help lists a verb's options; dydit --version says what this build is.\n";
}

std::string isa_cap() {
  const char* cap = std::getenv("DYDIT_ISA");
  return cap ? cap : "";
}

int print_version(const Args& args) {
  const bool as_json = args == Args{"--json"};
  DYDIT_USAGE_CHECK(args.empty() || as_json, "--version goes alone or with --json; see dydit --help");
  // Not capped: tell what there is, even on a processor that the verbs refuse.
  const Isa isa = isa_cap().empty() ? detect_isa() : apply_isa_cap(isa_cap());
  const nlohmann::ordered_json version = version_facts(isa);
  if (as_json) {
    print_out("{}\n", json_text(version));
    return 0;
  }
  print_out("dydit {}\n", kVersion);
  for (const auto& [key, value] : version.items()) {
    if (key != "version") print_out("{:<10}{}\n", key, value.get<std::string>());
  }
  return 0;
}

int dispatch(const std::string& name, const Args& args) {
  for (const Verb& verb : kVerbs) {
    if (verb.name != name) continue;
    return verb.run(args, apply_isa_cap(isa_cap()));
  }
  throw UsageError(fmt::format("{}: no such verb; see dydit --help", name));
}

// LibTorch's messages carry a stack trace; the first line says what happened.
std::string first_line(std::string_view text) { return std::string(text.substr(0, text.find('\n'))); }

int run_verb(const std::string& name, const Args& args) {
  if (name == "--help" || name == "-h" || name == "help") {
    write_out(usage());
    return 0;
  }
  try {
    return name == "--version" ? print_version(args) : dispatch(name, args);
  } catch (const HelpRequested&) {
    return 0;
  }
}

// What was printed before an error counts as well: it may be all that is left of the work.
int run(int argc, char** argv) {
  prepare_streams();
  install_signal_handlers();
  if (argc < 2) {
    draw_error(usage());
    return kExitUsage;
  }
  const auto fail = [](std::string_view what, int status) {
    print_error(fmt::format("dydit: error: {}", what));
    return status;
  };
  const auto guarded = [&](const auto& work) {
    try {
      return work();
    } catch (const Cancelled&) {
      return kExitCancelled;
    } catch (const UsageError& error) {
      return fail(error.what(), kExitUsage);
    } catch (const Error& error) {
      return fail(error.what(), kExitFailed);
    } catch (const c10::OutOfMemoryError&) {
      return fail("out of memory on the GPU; take a smaller --batch, --dtype bf16 or a smaller model",
                  kExitFailed);
    } catch (const c10::Error& error) {
      return fail(first_line(error.what_without_backtrace()), kExitFailed);
    } catch (const std::bad_alloc&) {
      return fail("out of memory: this needs more than the machine gives; take a smaller --batch or model",
                  kExitFailed);
    } catch (const std::filesystem::filesystem_error& error) {
      return fail(fmt::format("{}: {}", error.path1().string(), error.code().message()), kExitFailed);
    } catch (const std::exception& error) {
      return fail(
          fmt::format("unforeseen ({}); please report it with the command and the output of dydit --version",
                      first_line(error.what())),
          kExitFailed);
    }
  };
  const int status = guarded([&] { return run_verb(argv[1], Args(argv + 2, argv + argc)); });
  const int told = guarded([] {
    finish_results();
    return 0;
  });
  return status != 0 ? status : told;
}

}  // namespace
}  // namespace dydit

int main(int argc, char** argv) { return dydit::run(argc, argv); }
