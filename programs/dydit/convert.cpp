// dydit convert IN OUT: any readable checkpoint -> safetensors or a torch file in dydit's format, or a folder
// of diffusers; routers dropped or added on the way.
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/base/dtype.h"
#include "dydit/base/error.h"
#include "dydit/io/diffusers.h"
#include "dydit/model/adapters.h"
#include "dydit/model/checkpoint.h"
#include "dydit/model/edit.h"
#include "dydit/model/layouts.h"
#include "dydit/model/quantization.h"
#include "model_flags.h"
#include "targets.h"
#include "verbs.h"

namespace dydit {
namespace {

using Save = void (*)(const std::filesystem::path&, const Checkpoint&, at::ScalarType);

// By the target's name, which says what is written.
Save writer_of(const std::string& out) {
  if (out.ends_with(".safetensors")) return save_checkpoint;
  if (out.ends_with(".pt")) return save_torch_checkpoint;
  DYDIT_USAGE_CHECK(out.ends_with("/"),
                    "{}: expected a name that ends in .safetensors or .pt, or in / for a folder of "
                    "diffusers; the ending says what is written",
                    out);
  return save_diffusers_folder;
}

std::vector<Target> targets_of(const std::string& out) {
  if (!out.ends_with("/")) return {{"out", out}};
  std::vector<Target> targets;
  for (const char* name : kDiffusersFiles) targets.push_back({"out", out + name});
  return targets;
}

// What a reader of one kind of file must know of the other.
constexpr const char* kDifferences =
    "diffusers computes a DiT differently from the original: timestep frequencies 10000^(-i/127), not "
    "10000^(-i/128); LayerNorm eps 1e-5, not 1e-6, before the MLP; guidance on all channels, not on 3; the "
    "learned variance is dropped";

}  // namespace

int run_convert(const Args& args, Isa isa) {
  Cli cli("convert",
          "Write a checkpoint (its EMA weights, where it has them) as safetensors, a torch file or a folder "
          "of diffusers.");
  std::string in, out, dtype = "f32", class_names, to = "same", semantics = "same", base;
  bool merge = false, adapters_only = false;
  CheckpointOptions options;
  uint64_t seed = 0;
  cli.app.add_option("in", in, kCheckpointHelp)->required();
  cli.app
      .add_option("out", out, "Target: .safetensors, .pt, or a name that ends in / for a folder of diffusers")
      ->required();
  cli.add_choice("--dtype", dtype, kDtypeNames.names(),
                 "Type of the stored weights (pos_embed stays float32)");
  cli.add_choice(
      "--to", to, {"same", "static", "dynamic", "uvit", "skip-dit"},
      "static: without its routers; dynamic: with the routers that finetune begins with; uvit, skip-dit: "
      "with the names of that family's own files, a .pt as their bare state dict");
  cli.add_choice(
      "--semantics", semantics, kSemanticsNames.names({"same"}),
      "How the weights are to be computed, stored with them; a folder of diffusers: as diffusers does");
  cli.add_seed("--seed", seed, "Of the added routers' weights");
  add_checkpoint_options(cli, options);
  cli.add_switch("--merge", merge, "Add a LoRA's updates to the weights: an ordinary checkpoint");
  cli.add_switch("--adapters-only", adapters_only,
                 "Write the adapters and routers alone, for --base to put onto the same base");
  cli.add_text(
      "--base", base,
      "IN is a file of adapters alone: the checkpoint that they were trained on; --num-heads, --weights, "
      "--path and --prediction are about it");
  cli.add_text("--class-names", class_names, "File with one class name a line, stored with the weights");
  cli.parse(args);
  const Save save = writer_of(out);
  const std::optional<Layout> layout = kLayoutNames.find(to);
  DYDIT_USAGE_CHECK(
      !layout || save != save_diffusers_folder,
      "--to {}: a folder of diffusers is a DiT's; take a target that ends in .safetensors or .pt", to);
  const bool folder = save == save_diffusers_folder;
  cli.needs("--seed", to == "dynamic", "--to dynamic: nothing else is drawn");
  cli.needs("--class-names", !folder, "a target that ends in .safetensors or .pt");
  cli.needs("--semantics", !folder || semantics != "original",
            "a target that ends in .safetensors or .pt: a folder of diffusers is computed as diffusers does");

  cli.one_of("--merge", "--adapters-only");
  cli.needs("--adapters-only", out.ends_with(".safetensors") && !layout,
            "a target that ends in .safetensors, under the names of a DiT");

  Checkpoint checkpoint = load_model(cli, base.empty() ? in : base, options);
  if (!base.empty()) checkpoint = put_adapters(checkpoint, in);
  refuse_quantized(checkpoint, "convert");
  check_targets(cli, targets_of(out), inputs_of(checkpoint, {class_names, base}));
  if (merge) checkpoint = merge_adapters(std::move(checkpoint));
  if (!class_names.empty())
    checkpoint.class_names = read_class_names(cli, class_names, checkpoint.config.num_classes);
  const bool dynamic = checkpoint.config.is_dynamic();
  DYDIT_USAGE_CHECK(to != "static" || dynamic, "{}: has no routers; --to static takes a DyDiT", in);
  DYDIT_USAGE_CHECK(to != "dynamic" || !dynamic, "{}: has routers already; --to dynamic takes a static DiT",
                    in);
  if (to == "static") checkpoint = drop_routers(std::move(checkpoint));
  // As finetune begins: the most important heads and channels first, and routers that leave everything on.
  if (to == "dynamic") checkpoint = add_routers(reorder_by_importance(checkpoint), {}, seed);
  cli.needs("--semantics", semantics != "diffusers" || layout_of(checkpoint.config) == Layout::DiT,
            fmt::format("a DiT; diffusers has no {}", model_name(checkpoint.config)));
  const Semantics before = semantics_of(checkpoint.config);
  const Semantics after = folder                ? Semantics::Diffusers
                          : semantics != "same" ? kSemanticsNames.at(semantics)
                                                : before;
  if (before != after) checkpoint.config = with_semantics(checkpoint.config, after);
  if (layout) {
    save_in_layout(out, checkpoint, kDtypeNames.at(dtype), *layout, save == save_torch_checkpoint);
  } else if (adapters_only) {
    save_adapters(out, checkpoint, kDtypeNames.at(dtype));
  } else {
    save(out, checkpoint, kDtypeNames.at(dtype));
  }
  cli.print({{"in", in},
             {"out", out},
             {"weights", checkpoint.weights_key},
             {"model", model_name(checkpoint.config)},
             {"dtype", dtype},
             {"semantics", kSemanticsNames[after]},
             {"parameters", checkpoint.num_parameters()}},
            [&] {
              const std::string& key = checkpoint.weights_key;
              print_out("{}: {}, {:.2f} M parameters{} -> {} ({})\n", in, model_name(checkpoint.config),
                        static_cast<double>(checkpoint.num_parameters()) / 1e6,
                        key.empty() ? "" : fmt::format(" ({})", key), out, dtype);
            });
  if (before != Semantics::Original || after != Semantics::Original) {
    cli.console.info(fmt::format("{}; {} will be computed in {}'s way", kDifferences, out,
                                 after == Semantics::Original ? "the original" : "diffusers"));
  }
  return 0;
}

}  // namespace dydit
