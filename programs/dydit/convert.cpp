// dydit convert IN OUT: any readable checkpoint -> safetensors in dydit's format.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "class_names.h"
#include "cli.h"
#include "dydit/base/error.h"
#include "dydit/model/checkpoint.h"
#include "verbs.h"

namespace dydit {

int run_convert(const Args& args, Isa isa) {
  Cli cli("convert", "Write a checkpoint (its EMA weights, where it has them) as safetensors.");
  std::string in, out, dtype = "f32", class_names;
  int num_heads = 0;
  cli.app.add_option("in", in, "Checkpoint: safetensors or a torch zip file (.pt)")->required();
  cli.app.add_option("out", out, "Target, .safetensors")->required();
  cli.add_choice("--dtype", dtype, {"f32", "bf16"}, "Type of the stored weights (pos_embed stays float32)");
  cli.app.add_option("--num-heads", num_heads, "Heads of a static DiT, where the file does not say")
      ->check(CLI::Range(1, 4096));
  cli.app.add_option("--class-names", class_names,
                     "File with one class name a line, stored with the weights");
  cli.parse(args);
  DYDIT_USAGE_CHECK(out.ends_with(".safetensors"),
                    "{}: this version writes safetensors; expected a name that ends in "
                    ".safetensors",
                    out);

  Checkpoint checkpoint = load_checkpoint(in, {.num_heads = num_heads});
  if (!class_names.empty())
    checkpoint.class_names = read_class_names(class_names, checkpoint.config.num_classes);
  save_checkpoint(out, checkpoint, dtype == "bf16" ? at::kBFloat16 : at::kFloat);
  const std::string weights =
      checkpoint.weights_key.empty() ? "" : fmt::format(" ({})", checkpoint.weights_key);
  if (cli.json) {
    fmt::print("{}\n", nlohmann::json({{"in", in},
                                       {"out", out},
                                       {"weights", checkpoint.weights_key},
                                       {"model", model_name(checkpoint.config)},
                                       {"dtype", dtype},
                                       {"parameters", checkpoint.num_parameters()}})
                           .dump());
  } else {
    fmt::print("{}: {}, {:.2f} M parameters{} -> {} ({})\n", in, model_name(checkpoint.config),
               static_cast<double>(checkpoint.num_parameters()) / 1e6, weights, out, dtype);
  }
  return 0;
}

}  // namespace dydit
