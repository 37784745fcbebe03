// See the header.
#include "model_flags.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <string_view>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

constexpr size_t kMaxNameBytes = 16 << 20;  // a thousand times what names take
#ifdef DYDIT_CUDA
constexpr bool kBuiltWithCuda = true;
#else
constexpr bool kBuiltWithCuda = false;
#endif
constexpr int kMostGpus = 16;  // that a machine has
constexpr size_t kTold = 5;    // names that several classes have

// Of anything that can be read once: a file, a pipe.
std::string read_text(const std::string& path) {
  std::ifstream file(path);
  DYDIT_CHECK(file && !std::filesystem::is_directory(path), "{}: cannot read class names", path);
  std::string text(kMaxNameBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  DYDIT_CHECK(text.size() <= kMaxNameBytes, "{}: more than {} bytes; a file of class names has one a line",
              path, kMaxNameBytes);
  return text;
}

void tell_shared_names(Cli& cli, const std::string& path, const std::vector<std::string>& names) {
  std::map<std::string, std::vector<size_t>> labels;
  for (size_t i = 0; i < names.size(); ++i) labels[names[i]].push_back(i);
  size_t told = 0;
  for (const auto& [name, classes] : labels) {
    if (classes.size() == 1 || ++told > kTold) continue;
    cli.console.info(fmt::format("{}: classes {} are all called '{}'; choose them by their labels", path,
                                 fmt::join(classes, ", "), name));
  }
  if (told > kTold)
    cli.console.info(fmt::format("{}: and {} more names that several classes have", path, told - kTold));
}

}  // namespace

void add_checkpoint_options(Cli& cli, CheckpointOptions& options, const std::string& weights_flag) {
  cli.add_number("--num-heads", options.num_heads, 1, 4096,
                 "Heads of a static DiT, where the file does not say");
  cli.add_text(
      weights_flag, options.weights,
      "Which of the file's sets of weights, by its key as inspect lists them; default: an average (ema), "
      "else the model");
  cli.add_choice("--path", options.path, kPathNames.names(),
                 "From noise to data, where the file does not say that it is a SiT: linear (SiT), "
                 "linear-reversed (REPA), gvp or vp; table: a DiT's betas");
  cli.add_choice("--prediction", options.prediction, kPredictionNames.names(),
                 "What it predicts, where the file does not say; with --path: velocity");
}

void add_model_path(Cli& cli, std::string& path, CheckpointOptions& options,
                    const std::string& weights_flag) {
  cli.add_text("--model,--ckpt", path, kCheckpointHelp)->required();
  add_checkpoint_options(cli, options, weights_flag);
}

Checkpoint load_model(Cli& cli, const std::string& path, const CheckpointOptions& options) {
  Checkpoint checkpoint = load_checkpoint(path, options);
  for (const std::string& note : checkpoint.read_notes) cli.console.info(fmt::format("{}: {}", path, note));
  return checkpoint;
}

nlohmann::json loading_of(const CheckpointOptions& options, const std::string& class_names_file) {
  nlohmann::json loading = nlohmann::json::object();
  if (options.num_heads > 0) loading["num_heads"] = options.num_heads;
  for (const auto& [key, text] : {std::pair{"weights", options.weights},
                                  {"path", options.path},
                                  {"prediction", options.prediction},
                                  {"class_names", class_names_file}})
    if (!text.empty()) loading[key] = text;
  return loading;
}

void add_guided_channels(Cli& cli, std::string& text) {
  cli.add_text(
      "--cfg-channels", text,
      "How many of the first channels are guided, or 'all'; auto: 3 as DiT and SiT, all of a U-ViT and in "
      "diffusers' semantics");
}

std::optional<int> guided_channels_of(const Cli& cli, const std::string& text, const DiTConfig& config) {
  if (text == "auto") return std::nullopt;
  if (text == "all") return config.in_channels;
  const auto channels = parse_number<int>(text);
  DYDIT_USAGE_CHECK(channels && *channels >= 1, "{} {}: expected a number of channels, 'all' or 'auto'",
                    cli.named("--cfg-channels"), text);
  return *channels;
}

void ModelFlags::add(Cli& cli, const std::string& default_dtype, const std::string& default_engine,
                     const std::string& weights_flag) {
  dtype = default_dtype;
  where.engine = default_engine;
  add_model_path(cli, path, checkpoint, weights_flag);
  add_computing(cli);
}

void ModelFlags::add_positional(Cli& cli) {
  cli.app.add_option("model", path, kCheckpointHelp)->required();
  add_checkpoint_options(cli, checkpoint);
  add_computing(cli);
}

void ModelFlags::add_computing(Cli& cli) {
  cli.add_choice("--dtype", dtype, kModelDtypeNames.names({"auto"}), kDtypeHelp);
  where.add(cli);
  cli.add_threads(threads);
}

void DeviceFlags::add(Cli& cli) {
  cli.add_choice("--engine", engine, kEngineNames.names({"auto"}),
                 "Engine; auto: cpu, which skips what is off, on a GPU torch, which does so there");
  add_device(cli, device, /*several=*/true);
  cli.add_choice("--graphs", graphs, kGraphModeNames.names(),
                 "On a GPU: replay steps as CUDA graphs; auto: in small batches");
  cli.add_switch("--no-batch-invariant", no_batch_invariant,
                 "On a GPU: the fastest products, by which an image depends on its batch");
}

void DeviceFlags::check(Cli& cli) const {
  for (const char* flag : {"--graphs", "--no-batch-invariant"})
    cli.needs(flag, resolve().device.is_cuda(), "--device cuda");
}

EngineKind DeviceFlags::resolve_engine() const {
  if (engine != "auto") return kEngineNames.at(engine);
  return resolve().device.is_cuda() ? EngineKind::Torch : EngineKind::Cpu;
}

at::Device gpu_or_cpu(const std::string& name) {
  const at::Device named(name);
  return named.is_cuda() && !named.has_index() ? at::Device(at::kCUDA, 0) : named;
}

DeviceOptions DeviceFlags::resolve() const {
  return {.device = gpu_or_cpu(device),
          .batch_invariant = !no_batch_invariant,
          .graphs = kGraphModeNames.at(graphs)};
}

void add_device(Cli& cli, std::string& device, bool several) {
  std::vector<std::string> choices = {"cpu"};
  if (!kBuiltWithCuda) {
    std::vector<std::string> gpus = {"cuda"};
    for (int index = 0; index < kMostGpus; ++index) gpus.push_back(fmt::format("cuda:{}", index));
    cli.add_choice("--device", device, choices, "Device", gpus,
                   "built without CUDA; scripts/build cuda builds it with CUDA");
    return;
  }
  choices.emplace_back("cuda");
  for (int index = 0; several && index < kMostGpus; ++index) choices.push_back(fmt::format("cuda:{}", index));
  cli.add_choice("--device", device, choices, "Device");
}

at::ScalarType ModelFlags::resolve_dtype(const Checkpoint& checkpoint) const {
  const at::DeviceType type = where.resolve().device.type();
  return dtype == "auto" ? auto_dtype(checkpoint, resolve_engine(), type) : dtype_of(dtype, type);
}

EngineOptions ModelFlags::engine_options(const Checkpoint& checkpoint) const {
  return {.dtype = resolve_dtype(checkpoint), .threads = threads, .where = where.resolve()};
}

std::vector<std::string> read_class_names(Cli& cli, const std::string& path, int num_classes) {
  const std::string text = read_text(path);
  std::vector<std::string> names;
  size_t number = 0;
  for (std::string_view rest = checked_text(text, path); !rest.empty();) {
    ++number;
    std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    DYDIT_CHECK(printable(line, line.npos) == line, "{}: line {} holds control characters: {}", path, number,
                quote(line));
    if (!line.empty()) names.emplace_back(line);
  }
  DYDIT_CHECK(static_cast<int>(names.size()) == num_classes, "{}: {} class names, the model has {} classes",
              path, names.size(), num_classes);
  tell_shared_names(cli, path, names);
  return names;
}

}  // namespace dydit
