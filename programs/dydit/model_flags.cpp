// See the header.
#include "model_flags.h"

namespace dydit {

void add_model_path(Cli& cli, std::string& path, int& num_heads) {
  cli.add_text("--model,--ckpt", path,
               "Checkpoint: safetensors, the index or folder of several, a torch file (.pt, .pth), or a "
               "folder of diffusers")
      ->required();
  cli.add_number("--num-heads", num_heads, 1, 4096, "Heads of a static DiT, where the file does not say");
}

void ModelFlags::add(Cli& cli, const std::string& default_dtype, const std::string& default_engine) {
  dtype = default_dtype;
  engine = default_engine;
  add_model_path(cli, path, num_heads);
  cli.add_choice("--dtype", dtype, {"auto", "bf16", "f32"},
                 "Arithmetic; auto: bf16 where the processor has it");
  cli.add_choice("--engine", engine, {"auto", "cpu", "reference"},
                 "Engine; auto: cpu, which skips what is off");
  cli.add_choice("--device", device, {"cpu"}, "Device", {"cuda"});
  cli.add_threads(threads);
}

at::ScalarType ModelFlags::resolve_dtype(Isa isa) const {
  if (dtype == "auto") return has_native_bf16(isa) ? at::kBFloat16 : at::kFloat;
  return dtype == "bf16" ? at::kBFloat16 : at::kFloat;
}

EngineKind ModelFlags::resolve_engine() const {
  return engine == "reference" ? EngineKind::Reference : EngineKind::Cpu;
}

}  // namespace dydit
