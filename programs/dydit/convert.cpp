// dydit convert IN OUT: any readable checkpoint -> safetensors or a torch file in dydit's format; routers
// dropped or added on the way.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "class_names.h"
#include "cli.h"
#include "dydit/base/error.h"
#include "dydit/model/checkpoint.h"
#include "dydit/model/init.h"
#include "verbs.h"

namespace dydit {
namespace {

// The static DiT under a DyDiT: what is left when everything is on.
Checkpoint drop_routers(Checkpoint checkpoint) {
  DYDIT_USAGE_CHECK(checkpoint.config.is_dynamic(), "{}: has no routers; --to static takes a DyDiT",
                    checkpoint.path.string());
  std::erase_if(checkpoint.weights, [](const auto& entry) { return is_router_parameter(entry.first); });
  checkpoint.config.width_routers = checkpoint.config.token_routers = false;
  checkpoint.keep_counts.reset();
  checkpoint.lambda.reset();  // of work that the routers saved
  return checkpoint;
}

// As finetune begins: the most important heads and channels first, and routers that leave everything on.
Checkpoint with_routers(const Checkpoint& checkpoint, uint64_t seed) {
  DYDIT_USAGE_CHECK(!checkpoint.config.is_dynamic(),
                    "{}: has routers already; --to dynamic takes a static DiT", checkpoint.path.string());
  return add_routers(reorder_by_importance(checkpoint), {}, seed);
}

}  // namespace

int run_convert(const Args& args, Isa isa) {
  Cli cli("convert",
          "Write a checkpoint (its EMA weights, where it has them) as safetensors or a torch file.");
  std::string in, out, dtype = "f32", class_names, to = "same";
  int num_heads = 0;
  uint64_t seed = 0;
  cli.app
      .add_option("in", in,
                  "Checkpoint: safetensors, the index or folder of several, or a torch file (.pt, .pth)")
      ->required();
  cli.app.add_option("out", out, "Target, .safetensors or .pt")->required();
  cli.add_choice("--dtype", dtype, {"f32", "bf16"}, "Type of the stored weights (pos_embed stays float32)");
  cli.add_choice("--to", to, {"same", "static", "dynamic"},
                 "static: without its routers; dynamic: with the routers that finetune begins with");
  cli.app.add_option("--seed", seed, "Of the added routers' weights")->capture_default_str();
  cli.app.add_option("--num-heads", num_heads, "Heads of a static DiT, where the file does not say")
      ->check(CLI::Range(1, 4096));
  cli.app.add_option("--class-names", class_names,
                     "File with one class name a line, stored with the weights");
  cli.parse(args);
  const bool to_torch = out.ends_with(".pt");
  DYDIT_USAGE_CHECK(to_torch || out.ends_with(".safetensors"),
                    "{}: expected a name that ends in .safetensors or .pt, which says what is written", out);

  Checkpoint checkpoint = load_checkpoint(in, {.num_heads = num_heads});
  if (!class_names.empty())
    checkpoint.class_names = read_class_names(class_names, checkpoint.config.num_classes);
  if (to == "static") checkpoint = drop_routers(std::move(checkpoint));
  if (to == "dynamic") checkpoint = with_routers(checkpoint, seed);
  const at::ScalarType type = dtype == "bf16" ? at::kBFloat16 : at::kFloat;
  (to_torch ? save_torch_checkpoint : save_checkpoint)(out, checkpoint, type);
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
