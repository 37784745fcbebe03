// The targets of fuzz_checkpoints, which need LibTorch: bodies of requests (orders.cpp), and whole
// checkpoints through load_checkpoint itself, so that what is understood of them (sets of weights, metadata,
// class names, configuration) meets mutants, too. Tensors are as small as a DiT allows: most edits then hit
// what is understood.
#include <filesystem>
#include <fstream>
#include <unistd.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>

#include "autoencoders.h"
#include "dydit/base/error.h"
#include "dydit/model/checkpoint.h"
#include "dydit/model/dit.h"
#include "dydit/model/layouts.h"
#include "dydit/model/quantization.h"
#include "orders.h"
#include "repair.h"
#include "targets.h"
#include "tests/support/pickle_builder.h"

namespace dydit::fuzz {
namespace {

namespace fs = std::filesystem;
namespace pickle = test::pickle;
using nlohmann::json;

const std::string kFile = "FILE";
constexpr int64_t kStorage = 8192;  // elements of the one storage of the torch files
using Metadata = std::map<std::string, std::string>;

DiTConfig small_config(bool dynamic) {
  return {.input_size = 4,
          .patch_size = 2,
          .in_channels = 1,
          .hidden_size = 8,
          .depth = 2,
          .num_heads = 2,
          .mlp_hidden = 8,
          .num_classes = 3,
          .learn_sigma = true,
          .width_routers = dynamic,
          .token_routers = dynamic};
}

DiTConfig small_uvit(int classes) {
  DiTConfig config = small_config(classes > 0);
  config.depth = 3;
  config.num_classes = classes;
  config.learn_sigma = false;
  config.time_mlp = config.qkv_bias = classes > 0;
  config.output_conv = classes == 0;
  return with_uvit(config);
}

DiTConfig small_skip_dit() {
  DiTConfig config = small_config(false);
  config.join = Join::Normed;
  return config;
}

std::vector<std::pair<std::string, std::vector<int64_t>>> shapes_of(const DiTConfig& config) {
  std::vector<std::pair<std::string, std::vector<int64_t>>> shapes;
  for (const auto& parameter : DiT(config)->named_parameters())
    shapes.emplace_back(parameter.key(), parameter.value().sizes().vec());
  return shapes;
}

Metadata own_metadata() {
  const json counts = json::array({json::array({1, 2, 2, 1}), json::array({2, 2, 1, 1})});
  return {{"dydit_format", "1"},
          {"config", config_to_json(small_config(true)).dump()},
          {"class_names", R"(["a", "b, c", "\u00e9"])"},
          {"gate_rule", "capacity"},
          {"keep_counts", json{{"heads", counts}, {"groups", counts}, {"tokens", counts}}.dump()},
          {"lambda", "0.5"},
          {"few_step", R"({"kind":"lcm","timesteps":[999,499],"guidance":1.5})"},
          {"note", "kept"}};
}

// Under the family's own names.
std::string safetensors(const DiTConfig& config, const Metadata& metadata,
                        const std::vector<std::string>& prefixes) {
  const LayoutNames names(layout_of(config), config.depth);
  json header = {{"__metadata__", metadata}};
  uint64_t end = 0;
  for (const std::string& prefix : prefixes) {
    for (const auto& [name, shape] : shapes_of(config)) {
      const uint64_t begin = end;
      end += static_cast<uint64_t>(*checked_numel(shape)) * dtype_size(Dtype::BF16);
      header[prefix + names.theirs(name)] = {
          {"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {begin, end}}};
    }
  }
  const std::string text = header.dump();
  std::string out;
  append_little<uint64_t>(out, text.size());
  return out + text + std::string(end, '\0');
}

// With adapters and what mixes them.
std::string adapted(DiTConfig config) {
  config.adapter = {AdapterKind::TdLora, 2, 3};
  return safetensors(
      config,
      {{"dydit_format", "2"},
       {"adapter", R"({"kind":"td-lora","rank":2,"experts":3,"scale":1,"mix":"A","base_sha256":"a"})"}},
      {""});
}

// The same with blocks of 8 bits, scales of 0 as of zeros.
std::string quantized(const DiTConfig& config) {
  json header = {
      {"__metadata__",
       {{"dydit_format", "1"},
        {"quantization",
         R"({"scheme":"w8a8-dynamic","version":1,"smoothing":0.5,"images":4,"seed":0,"parent_sha256":"a"})"}}}};
  uint64_t end = 0;
  const auto add = [&](const std::string& name, Dtype dtype, const std::vector<int64_t>& shape) {
    const uint64_t begin = end;
    end += static_cast<uint64_t>(*checked_numel(shape)) * dtype_size(dtype);
    header[name] = {{"dtype", dtype_name(dtype)}, {"shape", shape}, {"data_offsets", {begin, end}}};
  };
  for (const auto& [name, shape] : shapes_of(config)) {
    if (!is_block_layer(name) || !name.ends_with(".weight")) {
      add(name, Dtype::BF16, shape);
      continue;
    }
    const std::string layer = name.substr(0, name.rfind('.'));
    add(name, Dtype::I8, shape);
    add(name + ".scale", Dtype::F32,
        {shape[0], input_segments(config, layer.substr(layer.find('.', 7) + 1))});
  }
  const std::string text = header.dump();
  std::string out;
  append_little<uint64_t>(out, text.size());
  return out + text + std::string(end, '\0');
}

// Every tensor begins where the storage of `elements` does.
std::string state_dict(const DiTConfig& config, const std::string& prefix, int64_t elements,
                       const std::vector<std::string>& more) {
  std::vector<std::string> items;
  for (const auto& [name, shape] : shapes_of(config)) {
    std::vector<int64_t> strides(shape.size(), 1);
    for (size_t i = shape.size() - 1; i-- > 0;) strides[i] = strides[i + 1] * shape[i + 1];
    items.push_back(pickle::text(prefix + name));
    items.push_back(pickle::tensor({.sizes = shape, .strides = strides, .numel = elements}));
  }
  items.insert(items.end(), more.begin(), more.end());
  return pickle::ordered_dict(items);
}

std::string args() {
  return pickle::global("argparse", "Namespace") + ")\x81" +
         pickle::dict({pickle::text("model"), pickle::text("tiny"), pickle::text("num_classes"),
                       pickle::number(3), pickle::text("image_size"), pickle::number(4),
                       pickle::text("class_dropout_prob"), pickle::real(0.1), pickle::text("learn_sigma"),
                       "\x88"}) +
         "b";
}

std::vector<std::string> torch_seeds() {
  using pickle::dict, pickle::number, pickle::pickle_of, pickle::text;
  const DiTConfig plain = small_config(false), dynamic = small_config(true);
  std::vector<std::string> metadata;
  for (const auto& [key, value] : own_metadata()) {
    metadata.push_back(text(key));
    metadata.push_back(text(value));
  }
  const std::string wrapped = state_dict(plain, "module.", kStorage, {text("step"), number(7)}),
                    bare = state_dict(plain, "", kStorage, {});
  return {
      pickle_of(dict({text("ema"), state_dict(dynamic, "", kStorage, {}), text("metadata"), dict(metadata)})),
      pickle_of(dict({text("model"), wrapped, text("ema"), dict({text("decay"), pickle::real(0.5)}),
                      text("args"), args()})),
      pickle_of(dict({text("state"), dict({text("model"), bare}), text("cfg"), args()}))};
}

// A zip file around the pickle, with the one storage.
void wrap_pickle(std::string& bytes) {
  bytes = test::build_zip({{"m/data.pkl", bytes},
                           {"m/byteorder", "little"},
                           {"m/data/0", std::string(kStorage * sizeof(float), '\0')},
                           {"m/version", "3\n"}});
}

std::string wrapped_seed() {
  std::string bytes = torch_seeds()[1];
  wrap_pickle(bytes);
  return bytes;
}

void read_file(Bytes bytes) {
  const Checkpoint checkpoint = parse_checkpoint(bytes, kFile, {.num_heads = 2, .weights = ""});
  for (const WeightsChoice& choice : checkpoint.choices) {
    if (choice.key.empty() || !choice.fault.empty()) continue;
    try {
      parse_checkpoint(bytes, kFile, {.num_heads = 2, .weights = choice.key});
    } catch (const Error&) {  // of another set than the preferred one
    }
  }
}

// A pipeline's folder called FILE in the working folder; the process that made it removes it.
class PipelineFolder {
 public:
  PipelineFolder() : parent_(::getpid()) {
    const fs::path place = fs::exists("/dev/shm") ? fs::path("/dev/shm") : fs::temp_directory_path();
    std::string pattern = place / "fuzz-XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) throw Error("no temporary folder");
    top_ = pattern;
    const fs::path golden = fs::path(DYDIT_TESTS_DIR) / "golden/diffusers/transformer";
    const char* weights = "diffusion_pytorch_model.safetensors";
    fs::create_directories(top_ / kFile / "transformer");
    fs::copy(golden / weights, top_ / kFile / "transformer" / weights);
    std::ifstream config(golden / "config.json");
    config_.assign(std::istreambuf_iterator<char>(config), {});
    fs::current_path(top_);
  }
  ~PipelineFolder() {
    std::error_code ignored;
    if (::getpid() == parent_) fs::remove_all(top_, ignored);
  }
  const std::string& config() const { return config_; }

 private:
  pid_t parent_;
  fs::path top_;
  std::string config_;
};

// config.json, a byte 0, model_index.json.
void read_folder(Bytes bytes) {
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const size_t cut = std::min(text.find('\0'), text.size());
  std::ofstream(kFile + "/transformer/config.json", std::ios::binary) << text.substr(0, cut);
  std::ofstream(kFile + "/model_index.json", std::ios::binary)
      << (cut < text.size() ? text.substr(cut + 1) : "");
  load_checkpoint(kFile);
}

std::string with_metadata(const std::string& key, const std::string& value) {
  Metadata metadata = own_metadata();
  metadata[key] = value;
  return safetensors(small_config(true), metadata, {""});
}

std::vector<Hostile> hostile_safetensors() {
  constexpr size_t kDeep = 500'000;
  return {
      {"a deep config", [] { return with_metadata("config", "{\"semantics\":" + std::string(kDeep, '[')); }},
      {"deep counts", [] { return with_metadata("keep_counts", "{\"heads\":[[" + std::string(kDeep, '[')); }},
      {"a deep lambda",
       [] { return with_metadata("lambda", std::string(kDeep, '[') + std::string(kDeep, ']')); }},
      {"a class name of a megabyte",
       [] { return with_metadata("class_names", "[\"" + std::string(1 << 20, 'x') + "\",\"b\",\"c\"]"); }},
      {"a hundred thousand class names", [] {
         std::string names = "[\"a\"";
         for (int i = 0; i < 100'000; ++i) names += ",\"a\"";
         return with_metadata("class_names", names + "]");
       }}};
}

std::vector<Hostile> hostile_torch() {
  return {{"200 blocks of hidden size 512 in one storage", [] {
             DiTConfig config = small_config(false);
             config.hidden_size = config.mlp_hidden = 512;
             config.depth = 200;
             constexpr int64_t kElements = 6 * 512 * 512;
             return test::build_zip({{"m/data.pkl", pickle::pickle_of(state_dict(config, "", kElements, {}))},
                                     {"m/data/0", std::string(kElements * sizeof(float), '\0')}});
           }}};
}

}  // namespace

std::vector<Target> all_targets() {
  at::set_num_threads(1);
  static const PipelineFolder folder;
  const DiTConfig plain = small_config(false), dynamic = small_config(true);
  const std::vector<std::string> json_tokens = {"\"depth\":",
                                                "\"num_heads\":",
                                                "\"semantics\":",
                                                "\"diffusers\"",
                                                "\\\"",
                                                "{",
                                                "}",
                                                "[",
                                                "]",
                                                "\"",
                                                ":",
                                                ",",
                                                "null",
                                                "1e9",
                                                "-1",
                                                "0.5",
                                                "\\u0000",
                                                "\\ud800",
                                                "\\u001b",
                                                "4194304",
                                                "capacity",
                                                "threshold",
                                                "heads",
                                                "tokens",
                                                "module.",
                                                "_orig_mod.",
                                                "ema_model.",
                                                "pos_embed",
                                                "velocity",
                                                "path_type",
                                                "linear-reversed",
                                                "vp-999",
                                                "null_class",
                                                "mid_block.",
                                                "skip_linears.",
                                                "skip_linear.",
                                                "norm1.",
                                                "dydit_format",
                                                "class_names",
                                                "lambda",
                                                "image_size",
                                                "keep_counts",
                                                "gate_rule",
                                                "quantization",
                                                "few_step",
                                                ".scale",
                                                ".smooth",
                                                ".lora.A",
                                                ".lora_alpha.",
                                                "td-lora",
                                                "adapter",
                                                "I8"};
  const std::vector<std::string> torch_tokens = {
      "}",          "u",      "]",         "e",    "N",    "\x88",     "K\1",
      "G",          "R",      "b",         ".",    "(",    "t",        "X\3",
      "ema",        "model",  "module.",   "step", "args", "metadata", "shadow_params",
      "state_dict", "config", "image_size"};
  const std::string labels =
      R"({"_class_name":"DiTPipeline","id2label":{"0":"a","1":"b, c","2":"c","3":"d","4":"e"}})";
  std::vector<Target> targets = {
      {.name = "checkpoint",
       .seeds = {safetensors(dynamic, own_metadata(), {""}), adapted(plain),
                 safetensors(plain, {{"config", "{\"num_heads\": 2}"}, {"class_names", "a,b"}}, {"module."}),
                 safetensors(plain, {{"model", "DiT-tiny"}}, {"ema_model.", "online_model."}),
                 quantized(plain), safetensors(small_uvit(0), {{"config", "{\"num_heads\": 2}"}}, {""}),
                 safetensors(small_uvit(3), {{"config", "{\"null_class\": true}"}}, {"nnet."}),
                 safetensors(small_skip_dit(), {{"config", "{\"num_heads\": 2}"}}, {""}),
                 safetensors(plain, {{"config", "{\"num_heads\": 2, \"path\": \"linear\"}"}}, {""})},
       .tokens = json_tokens,
       .hostile = hostile_safetensors(),
       .read = read_file,
       .finish = repair_safetensors},
      {.name = "torch-pickle",
       .seeds = torch_seeds(),
       .tokens = torch_tokens,
       .hostile = {},
       .read = read_file,
       .finish = wrap_pickle,
       .when = Finish::Always},
      {.name = "torch-zip",
       .seeds = {wrapped_seed()},
       .tokens = torch_tokens,
       .hostile = hostile_torch(),
       .read = read_file},
      {.name = "pipeline",
       .seeds = {folder.config() + std::string(1, '\0') + labels},
       .tokens = json_tokens,
       .hostile = {},
       .read = read_folder}};
  for (Target& target : autoencoder_targets()) targets.push_back(std::move(target));
  for (Target& target : order_targets()) targets.push_back(std::move(target));
  return targets;
}

}  // namespace dydit::fuzz
