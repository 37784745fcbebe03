// See the header.
#include "model_flags.h"

#include <fmt/format.h>

namespace dydit {

void add_checkpoint_options(Cli& cli, CheckpointOptions& options) {
  cli.add_number("--num-heads", options.num_heads, 1, 4096,
                 "Heads of a static DiT, where the file does not say");
  cli.add_text(
      "--weights", options.weights,
      "Which of the file's sets of weights, by its key as inspect lists them; default: an average (ema), "
      "else the model");
}

void add_model_path(Cli& cli, std::string& path, CheckpointOptions& options) {
  cli.add_text("--model,--ckpt", path,
               "Checkpoint: safetensors, the index or folder of several, a torch file (.pt, .pth), or a "
               "folder of diffusers")
      ->required();
  add_checkpoint_options(cli, options);
}

Checkpoint load_model(const Cli& cli, const std::string& path, const CheckpointOptions& options) {
  Checkpoint checkpoint = load_checkpoint(path, options);
  for (const std::string& note : checkpoint.read_notes) cli.note(fmt::format("{}: {}", path, note));
  return checkpoint;
}

void ModelFlags::add(Cli& cli, const std::string& default_dtype, const std::string& default_engine) {
  dtype = default_dtype;
  engine = default_engine;
  add_model_path(cli, path, checkpoint);
  cli.add_choice("--dtype", dtype, kDtypeNames.names({"auto"}),
                 "Arithmetic; auto: bf16 where the processor has it");
  cli.add_choice("--engine", engine, kEngineNames.names({"auto"}),
                 "Engine; auto: cpu, which skips what is off");
  cli.add_choice("--device", device, {"cpu"}, "Device", {"cuda"});
  cli.add_threads(threads);
}

EngineKind ModelFlags::resolve_engine() const {
  return engine == "auto" ? EngineKind::Cpu : kEngineNames.at(engine);
}

}  // namespace dydit
