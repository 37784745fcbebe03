// Names and defaults are those of DiT's and DyDiT's training scripts where they have them.
#include "train_flags.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/Context.h>

#include "dydit/base/dtype.h"
#include "dydit/base/error.h"
#include "dydit/diffusion/lcm.h"
#include "dydit/model/adapters.h"
#include "dydit/model/edit.h"
#include "extractor_flags.h"
#include "model_flags.h"

namespace dydit {
namespace {

// The map that the classifier of the published CIFAR networks averages.
FeatureEncoder cifar_encoder(const std::shared_ptr<Extractor>& network) {
  constexpr int kGrid = 8;
  return {.sha256 = network->weights_sha256(),
          .side = network->sizes().side,
          .grid = kGrid,
          .channels = network->sizes().features,
          .features = [network](const at::Tensor& x0) { return network->stage("layer3", x0); }};
}

}  // namespace

void TrainFlags::add(Cli& cli) {
  constexpr int kMost = 1'000'000'000;
  constexpr double kLarge = 1e12;
  data.add(cli, "", "train");
  cli.add_number("--image-size,--image_size", data.options.side, 1, 4096,
                 "Side of the square images to train on; default: the model's, or that of most images");
  cli.add_switch("--skip-broken", data.options.skip_broken,
                 "Leave broken images out and count them instead of stopping");
  cli.add_text("--results-dir,--results_dir", results_dir, "Runs go to DIR/000-NAME, 001-NAME, ...");
  CLI::Option* resumed = cli.app.add_option("--resume", resume,
                                            "Continue a run of --results-dir from its newest whole "
                                            "checkpoint: RUN (a folder's name, its number, or "
                                            "a path), or without one the newest that fits");
  cli.keep_default(resumed, resume);
  resumed->expected(0, 1)->type_name("[RUN]");
  cli.add_number("--total-train-steps,--total_train_steps", options.total_steps, 1, kMost, "Steps in all");
  cli.add_number("--epochs", epochs, 1e-6, 1e9, "Passes over the data, instead of steps");
  cli.add_number("--global-batch-size,--global_batch_size", options.global_batch, 1, 1 << 24,
                 "Images a step, over all processes");
  cli.add_number("--accumulate", options.accumulate, 1, 1 << 16,
                 "Micro-batches a process cuts its share into");
  cli.add_number("--lr", options.lr, 0, kLarge, "Learning rate of AdamW");
  cli.add_number("--warmup-step,--warmup_step", options.warmup_steps, 0, kMost, "Steps of linear warm-up");
  cli.add_number("--weight-decay,--weight_decay", options.weight_decay, 0, kLarge, "Decoupled weight decay");
  cli.add_number("--clip-grad,--clip_grad", options.clip_grad, 0, kLarge,
                 "Clip the gradient's L2 norm to this; 0: do not");
  cli.add_number("--skip-norm,--clip-max-norm,--clip_max_norm", options.skip_norm, 0, kLarge,
                 "Skip updates whose gradient norm is this or more; 0: none but NaN");
  cli.add_number("--ema-decay,--ema_decay", options.ema_decay, 0, 1, "Decay of the weights' moving average");
  cli.add_number("--label-dropout", options.label_dropout, 0, 1,
                 "Share of labels replaced by the null class");
  cli.add_choice("--flip", flip, {"on", "off"}, "Random horizontal flip");
  TimestepOptions& draw = options.timesteps;
  cli.add_choice("--timesteps", timesteps, kTimestepDrawNames.names(),
                 "How t is drawn: evenly by quarters of a batch or each by itself, as SpeeD, or seldom near "
                 "noise and image");
  cli.add_number("--speed-k", draw.k, 1, 1e6, "SpeeD: how much more often t below tau is drawn");
  cli.add_number("--speed-tau", draw.tau, 1, kNumTrainTimesteps, "SpeeD: where nearly all is noise");
  cli.add_choice("--loss-weights", loss_weights, {"on", "off"},
                 "SpeeD: weigh the mse below tau by how fast x_t changes there");
  cli.add_number("--speed-lambda", draw.lambda, 0, 1,
                 "SpeeD: the weight where it changes fastest; 1 less this where slowest");
  cli.add_number("--logit-mean", draw.logit_mean, -20, 20, "logit-normal: mean of the noise share's logit");
  cli.add_number("--logit-std", draw.logit_std, 1e-3, 20, "logit-normal: its standard deviation");
  cli.add_switch(
      "--long-skips", long_skips,
      "Add Skip-DiT's long skips to a DiT, in a form that changes nothing until it is trained; for --cache "
      "skip");
  cli.add_number(
      "--levels", levels, 2, kMostLevels,
      "Patch sizes p, 2p, ... of one model, each trained in its share of the steps at all t (FlexiDiT)");
  cli.add_text(
      "--level-from", level_from,
      "Instead: 2p from this t on and p below it, as PPFlow trains; of more sizes a list, e.g. 500,750");
  cli.add_choice(
      "--adapter", adapter, kAdapterNames.names(),
      "Train low-rank updates of the blocks' layers (and routers) and let all else rest: plain LoRA, "
      "or TD-LoRA (our form), whose matrices follow the timestep");
  cli.add_number("--lora-rank", lora.rank, 1, 1 << 16, "Rank r of an adapter's matrices");
  cli.add_number("--lora-experts", lora.experts, 1, 1 << 10,
                 "TD-LoRA (our form): matrices that the timestep mixes");
  cli.add_choice("--lora-mix", lora_mix, kAdapterMixNames.names(),
                 "TD-LoRA (our form): of B A, which one there are several of");
  cli.add_number("--lora-scale", lora.scale, 1e-6, 1e6, "Factor s on B A");
  cli.add_number("--adapter-lr-scale", options.adapter_lr_scale, 0, 1e6,
                 "Learning rate of adapters, as a factor");
  HookOptions& hooks = options.hooks;
  cli.add_choice("--align", align, kAlignNames.names(),
                 "Loss on a block's features: as a deeper block of the average has them (self), as a frozen "
                 "network has them of the clean image (encoder), or apart from other images (dispersive)");
  cli.add_number("--align-block", hooks.block, 1, 1024, "Align the output of this block, counted from 1");
  cli.add_number("--align-teacher-block", hooks.teacher_block, 1, 1024,
                 "self: block of the average that is the target");
  cli.add_number("--align-weight", hooks.weight, 1e-9, kLarge,
                 "Weight of the alignment; default: .04 of self, .5 of encoder and dispersive");
  cli.add_number("--align-manifold", hooks.manifold, 0, kLarge,
                 "encoder: weight of the similarities of an image's tokens, beside the cosine's 1");
  cli.add_number("--align-manifold-inter", hooks.manifold_inter, 0, kLarge,
                 "encoder: weight of the similarities of a batch's images");
  cli.add_number("--align-interval", hooks.interval, 1, kNumTrainTimesteps,
                 "self: the average sees less noise by up to so many timesteps");
  cli.add_number("--align-tau", hooks.tau, 1e-6, 1e6, "dispersive: temperature of the distances");
  cli.add_number("--align-until", hooks.until, 0, kMost, "First step without alignment; 0: to the end");
  cli.add_text("--align-encoder", align_encoder,
               "encoder: weights of the CIFAR ResNet-56, or the folder that holds them");
  cli.add_number("--plr", hooks.plr, 0, kLarge,
                 "Weight of a prediction of the target from every block's features; 0: none");
  cli.add_choice(
      "--distill", distill, kDistillNames.names(),
      "lcm: learn from --teacher to make an image in a few steps, by consistency; with --ema-decay .95, "
      "--weight-decay .01, --clip-grad 1 and no label dropout unless these are given");
  cli.add_text("--teacher", teacher, "Static model whose path is learned; the same file as --model, mostly");
  cli.add_number(
      "--distill-guidance", options.distill.guidance, 1, 1000,
      "Guidance of the teacher, on all channels, which the student learns into its one row; 1: none");
  cli.add_choice("--loss", loss, kConsistencyLossNames.names(),
                 "How far the student is from its target: squares, or Huber's, which heeds outliers less");
  cli.add_choice("--dtype", dtype, kDtypeNames.names({"auto"}),
                 "Arithmetic of the blocks; master weights are float32");
  add_device(cli, device, /*several=*/false);
  cli.add_seed("--global-seed,--global_seed,--seed", options.seed, "Seed of everything that is drawn");
  cli.add_threads(threads, "the same number gives the same bits, another one the same up to rounding");
  cli.add_number("--log-every,--log_every", run.log_every, 1, kMost, "Steps a row of the log");
  cli.add_number("--ckpt-every,--ckpt_every", run.checkpoint_every, 1, kMost, "Steps between checkpoints");
  cli.add_number("--keep-last", run.keep_last, 1, kMost, "Checkpoints kept");
  cli.add_number("--keep-every", run.keep_every, 0, kMost,
                 "Checkpoints at multiples of this stay for good; 0: none");
  cli.add_number("--sample-every", run.sample_every, 0, kMost,
                 "Steps between sample grids of the EMA; 0: never");
  cli.add_number("--sample-steps", sample_steps, 1, 1000,
                 "DDIM steps of a sample grid; of lcm 4 unless given");
  cli.add_number("--sample-cfg-scale", sample_cfg_scale, 0, 1000, "Guidance of a sample grid");
  cli.add_text("--sample-cache", sample_cache,
               "Policy that makes a sample grid's plan, as --cache of dydit generate");
}

void TrainFlags::check_needs(Cli& cli) {
  cli.one_of("--total-train-steps", "--epochs");
  cli.one_of("--levels", "--level-from");
  for (const char* flag : {"--levels", "--level-from", "--long-skips"})
    cli.needs(flag, adapter == "none",
              "no --adapter, beside which all else rests: train the new parts first");
  cli.needs("--sample-steps", run.sample_every > 0, "--sample-every above 0");
  cli.needs("--sample-cfg-scale", run.sample_every > 0, "--sample-every above 0");
  cli.needs("--sample-cache", run.sample_every > 0, "--sample-every above 0");
  for (const char* flag : {"--speed-k", "--speed-tau", "--loss-weights", "--speed-lambda"})
    cli.needs(flag, timesteps == "speed", "--timesteps speed");
  cli.needs("--speed-lambda", loss_weights == "on", "--loss-weights on");
  for (const char* flag : {"--logit-mean", "--logit-std"})
    cli.needs(flag, timesteps == "logit-normal", "--timesteps logit-normal");
  cli.needs("--adapter", adapter == "none" || !model.empty(), "--model, whose weights rest beside it");
  for (const char* flag : {"--lora-rank", "--lora-scale", "--adapter-lr-scale"})
    cli.needs(flag, adapter != "none", "--adapter lora or td-lora");
  for (const char* flag : {"--lora-experts", "--lora-mix"})
    cli.needs(flag, adapter == "td-lora", "--adapter td-lora");
  DYDIT_USAGE_CHECK(adapter != "td-lora" || lora.experts > 1,
                    "{} 1: TD-LoRA (our form) mixes two matrices or more; with one it is --adapter lora",
                    cli.named("--lora-experts"));
  if (adapter != "none") options.adapter = lora;
  options.adapter.kind = kAdapterNames.at(adapter);
  if (adapter == "lora") options.adapter.experts = 1;
  if (adapter == "td-lora") options.adapter.mix = kAdapterMixNames.at(lora_mix);
  for (const char* flag : {"--align-block", "--align-weight", "--align-until"})
    cli.needs(flag, align != "none", "--align self, encoder or dispersive");
  for (const char* flag : {"--align-teacher-block", "--align-interval"})
    cli.needs(flag, align == "self", "--align self");
  for (const char* flag : {"--align-manifold", "--align-manifold-inter", "--align-encoder"})
    cli.needs(flag, align == "encoder", "--align encoder");
  cli.needs("--align-tau", align == "dispersive", "--align dispersive");
  options.hooks.align = kAlignNames.at(align);
  options.timesteps.draw = kTimestepDrawNames.at(timesteps);
  options.timesteps.weights = loss_weights == "on";
  options.distill.kind = kDistillNames.at(distill);
  options.distill.loss = kConsistencyLossNames.at(loss);
  const bool distils = options.distill.kind != DistillKind::None;
  for (const char* flag : {"--teacher", "--distill-guidance", "--loss"})
    cli.needs(flag, distils, "--distill lcm");
  DYDIT_USAGE_CHECK(!distils || !teacher.empty(), "--distill {}: needs --teacher, the model to learn from",
                    distill);
  cli.needs("--sample-cfg-scale", !distils, "a model that is not distilled: a student has one row an image");
  if (distils) {  // the authors' settings
    if (!cli.given("--ema-decay")) options.ema_decay = 0.95;
    if (!cli.given("--weight-decay")) options.weight_decay = 0.01;
    if (!cli.given("--clip-grad")) options.clip_grad = 1;
    if (!cli.given("--label-dropout")) options.label_dropout = 0;
    if (!cli.given("--sample-steps")) sample_steps = kLcmSteps;
    cli.needs("--sample-steps", sample_steps <= kLcmGrid,
              fmt::format("at most {} with --distill lcm", kLcmGrid));
  }
  const auto is_one_of = [&](std::initializer_list<std::string_view> words) {
    return std::find(words.begin(), words.end(), resume) != words.end();
  };
  // Without a name it is a switch, which a file or a variable sets in words.
  run.resume = cli.app.count("--resume") > 0 && !is_one_of({"false", "off", "no"});
  if (!run.resume || is_one_of({"true", "on", "yes"})) resume.clear();
}

Checkpoint TrainFlags::with_adapters(const Checkpoint& start, const Checkpoint& given,
                                     const std::string& order) const {
  const AdapterConfig &has = start.config.adapter, &wanted = options.adapter;
  if (has == wanted) return start;
  DYDIT_USAGE_CHECK(
      has.kind == AdapterKind::None,
      "{}: its adapters are {}, and {} is asked for; train on the same ones, or merge them first "
      "(dydit convert --merge)",
      model, adapter_text(has), adapter_text(wanted));
  Checkpoint adapted = add_adapters(start, wanted, options.seed);
  adapted.adapter_base = base_identity(given);
  adapted.notes[kOrderNote] = order;
  return adapted;
}

void TrainFlags::fit_data_to(const Checkpoint& start) {
  const int side = start.config.input_size;
  DYDIT_USAGE_CHECK(data.options.side == 0 || data.options.side == side,
                    "--image-size {}: the model takes {}x{}", data.options.side, side, side);
  data.fit_to(start);
}

Checkpoint TrainFlags::with_parts(Cli& cli, Checkpoint start) const {
  if (long_skips) cli.within("--long-skips", [&] { start = add_long_skips(std::move(start)); });
  if (levels == 0 && level_from.empty()) return start;
  const char* const flag = levels > 0 ? "--levels" : "--level-from";
  DYDIT_USAGE_CHECK(start.config.levels() == 1, "{}: {} has patch sizes already ({}); leave it out",
                    cli.named(flag), model, levels_text(start.config));
  std::vector<int> from(levels > 0 ? levels - 1 : 0, 0);
  cli.within(flag, [&] {
    if (levels == 0) from = whole_numbers(level_from);
    for (const int t : from)
      DYDIT_USAGE_CHECK(levels > 0 || t > 0, "{} is where t begins; --levels trains all sizes at all t", t);
    check_levels(start.config, from);
  });
  return add_levels(std::move(start), from);
}

Request TrainFlags::sample_request(const DiTConfig& config) const {
  constexpr int kImages = 16;
  Request request = {.num_images = kImages,
                     .num_steps = sample_steps,
                     .sampler = {SamplerKind::Ddim, 0},
                     .cfg_scale = config.can_guide() ? sample_cfg_scale : 1.0f};
  request.classes.resize(std::max(config.num_classes, 1));
  std::iota(request.classes.begin(), request.classes.end(), 0);
  take_few_step(few_step_of(options.distill), {.steps = false}, request);
  plan_by_policy({.cache = sample_cache}, config, request);
  return request;
}

void TrainFlags::load_encoder(Cli& cli) {
  if (options.hooks.align != Align::Encoder) return;
  constexpr auto kKind = ExtractorKind::Resnet56;
  DYDIT_USAGE_CHECK(!align_encoder.empty(),
                    "--align encoder: of which network? --align-encoder FILE names the weights of a CIFAR "
                    "ResNet-56 ({})",
                    extractor_file_names(kKind)[0]);
  const std::filesystem::path path = find_extractor_weights(kKind, align_encoder);
  DYDIT_USAGE_CHECK(!path.empty(), "--align-encoder {}: holds no {}", align_encoder,
                    extractor_file_names(kKind)[0]);
  const auto network = std::make_shared<Extractor>(kKind, path, ResizeRule::Resnet, /*bf16=*/false, threads);
  options.hooks.encoder = cifar_encoder(network);
  cli.console.info(fmt::format("encoder  {}, sha256 {:.10}", path.string(), network->weights_sha256()));
}

void TrainFlags::load_teacher(Cli& cli) {
  if (options.distill.kind != DistillKind::None)
    options.distill.teacher = std::make_shared<const Checkpoint>(load_model(cli, teacher, {}));
}

void TrainFlags::choose_device(int processes) {
  const bool cuda = device == "cuda";
  DYDIT_USAGE_CHECK(!cuda || processes == 1,
                    "--device cuda: {} processes; one process on one GPU is what there is", processes);
  DYDIT_CHECK(!cuda || at::hasCUDA(),
              "--device cuda: there is no GPU that CUDA can use (see nvidia-smi); train with --device cpu");
  options.device = at::Device(cuda ? at::kCUDA : at::kCPU, cuda ? 0 : -1);
  options.dtype = dtype_of(dtype, options.device.type());
}

void TrainFlags::resolve(const Dataset& dataset) {
  DYDIT_USAGE_CHECK((options.total_steps > 0) != (epochs > 0), "give either --total-train-steps or --epochs");
  if (epochs > 0) {
    options.total_steps =
        static_cast<int64_t>(std::ceil(epochs * static_cast<double>(dataset.size()) / options.global_batch));
  }
  options.flip = flip == "on";
}

}  // namespace dydit
