#include "dydit/io/diffusers.h"

#include <array>
#include <cstring>
#include <utility>

#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "dydit/io/safetensors.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Names = std::pair<std::string_view, std::string_view>;  // diffusers', the original's

constexpr const char* kConfig = kDiffusersFiles[0];
constexpr const char* kWeights = kDiffusersFiles[1];
constexpr double kNormEps = 1e-5;          // before the MLP
constexpr size_t kMaxJsonBytes = 1 << 20;  // a tree of JSON takes some twenty bytes for each of the text

// Of modules; ".weight" and ".bias" follow. Those of a block stand behind transformer_blocks.N and blocks.N.
constexpr std::array kOuter = {Names{"pos_embed.proj", "x_embedder.proj"},
                               Names{"proj_out_1", "final_layer.adaLN_modulation.1"},
                               Names{"proj_out_2", "final_layer.linear"}};
constexpr std::array kInBlocks = {Names{"norm1.linear", "adaLN_modulation.1"},
                                  Names{"attn1.to_out.0", "attn.proj"}, Names{"ff.net.0.proj", "mlp.fc1"},
                                  Names{"ff.net.2", "mlp.fc2"}};
constexpr std::array kQkv = {"attn1.to_q", "attn1.to_k", "attn1.to_v"};
constexpr const char* kQkvTogether = "attn.qkv";
// Whole tensors, which every block has a copy of.
constexpr std::array kCopies = {
    Names{"norm1.emb.timestep_embedder.linear_1.weight", "t_embedder.mlp.0.weight"},
    Names{"norm1.emb.timestep_embedder.linear_1.bias", "t_embedder.mlp.0.bias"},
    Names{"norm1.emb.timestep_embedder.linear_2.weight", "t_embedder.mlp.2.weight"},
    Names{"norm1.emb.timestep_embedder.linear_2.bias", "t_embedder.mlp.2.bias"},
    Names{"norm1.emb.class_embedder.embedding_table.weight", "y_embedder.embedding_table.weight"}};

std::string block_name(std::string_view blocks, int block, std::string_view rest) {
  return fmt::format("{}.{}.{}", blocks, block, rest);
}

// An object; what lies deeper than two levels (id2label has them) is left out.
Json parse_object(std::span<const std::byte> bytes, const std::string& name) {
  DYDIT_CHECK(bytes.size() <= kMaxJsonBytes, "{}: {} bytes; at most {} are read", name, bytes.size(),
              kMaxJsonBytes);
  const auto shallow = [](int depth, Json::parse_event_t, Json&) { return depth <= 2; };
  Json value = Json::parse(text_of(bytes), shallow, /*allow_exceptions=*/false);
  DYDIT_CHECK(value.is_object(), "{}: is not a JSON object; fetch it again", name);
  return value;
}

// The number `key` of config.json.
int64_t number(const Json& config, const std::string& name, const char* key, int64_t otherwise = 0) {
  const auto found = config.find(key);
  if (otherwise && (found == config.end() || found->is_null())) return otherwise;
  DYDIT_CHECK(found != config.end() && found->is_number_integer() && *found > 0 && *found < (1 << 22),
              "{}: {} is {}, expected a size", name, key, found == config.end() ? "missing" : shown(*found));
  return found->get<int64_t>();
}

// What else config.json may say is what our DiT is: all of it checked.
void check_settings(const Json& config, const std::string& name) {
  const std::string kind = config.value("_class_name", Json()).is_string()
                               ? config["_class_name"].get<std::string>()
                               : std::string("no class");
  DYDIT_CHECK(kind == "DiTTransformer2DModel" || kind == "Transformer2DModel",
              "{}: holds {}; a DiT is wanted (DiTTransformer2DModel or Transformer2DModel){}", name,
              quote(kind), kind.starts_with("Autoencoder") ? "; an autoencoder goes to --vae" : "");
  const std::array<std::pair<const char*, Json>, 6> wanted = {{{"norm_type", "ada_norm_zero"},
                                                               {"activation_fn", "gelu-approximate"},
                                                               {"attention_bias", true},
                                                               {"norm_elementwise_affine", false},
                                                               {"norm_eps", kNormEps},
                                                               {"double_self_attention", false}}};
  for (const auto& [key, value] : wanted) {
    const auto found = config.find(key);
    DYDIT_CHECK(found == config.end() || found->is_null() || *found == value,
                "{}: {} is {}, but a DiT has {}", name, key, shown(*found), shown(value));
  }
}

}  // namespace

Json parse_diffusers_config(std::span<const std::byte> bytes, const std::string& name) {
  const Json config = parse_object(bytes, name);
  check_settings(config, name);
  const int64_t heads = number(config, name, "num_attention_heads"),
                channels = number(config, name, "in_channels");
  const int64_t out = number(config, name, "out_channels", channels);
  return {{"input_size", number(config, name, "sample_size")},
          {"patch_size", number(config, name, "patch_size")},
          {"in_channels", channels},
          {"hidden_size", heads * number(config, name, "attention_head_dim")},
          {"depth", number(config, name, "num_layers")},
          {"num_heads", heads},
          {"num_classes", number(config, name, "num_embeds_ada_norm")},
          {"learn_sigma", out == 2 * channels},
          {"semantics", "diffusers"}};
}

std::vector<std::string> parse_id2label(std::span<const std::byte> bytes, int64_t num_classes,
                                        const std::string& name) {
  const Json pipeline = parse_object(bytes, name);
  std::vector<std::string> names;
  const auto labels = pipeline.find("id2label");
  if (labels == pipeline.end() || !labels->is_object()) return names;
  for (int64_t i = 0; i < num_classes; ++i) {
    const auto found = labels->find(std::to_string(i));
    if (found == labels->end() || !found->is_string()) return {};  // of other classes
    names.push_back(found->get<std::string>());
  }
  return names;
}

namespace {

// Its transformer's folder; a pipeline of another model has another class.
fs::path transformer_of(const fs::path& path) {
  if (is_there(path / kConfig) && !is_there(path / kDiffusersPipeline)) return path;
  const fs::path folder = path / "transformer";
  if (!is_there(folder / kConfig) && is_there(path / kDiffusersPipeline)) {
    const std::string index = (path / kDiffusersPipeline).string();
    const Json pipeline = parse_object(MappedFile::open(index)->bytes(), index);
    const auto kind = pipeline.find("_class_name");
    DYDIT_CHECK(kind == pipeline.end() || *kind == "DiTPipeline",
                "{}: is a {} of diffusers; a DiTPipeline is wanted", path.string(), shown(*kind));
  }
  DYDIT_CHECK(is_there(folder / kConfig), "{}: has no {}; fetch the folder again", folder.string(), kConfig);
  return folder;
}

// Moves tensors from diffusers' names to the original's.
class Renamer {
 public:
  Renamer(TensorViews tensors, std::string folder) : from_(std::move(tensors)), folder_(std::move(folder)) {}

  void module(const std::string& from, const std::string& to) {
    for (const char* part : {".weight", ".bias"}) to_[to + part] = take(from + part);
  }

  void copy(const std::string& from, const std::string& to) {
    const TensorView view = take(from);
    const auto [place, first] = to_.emplace(to, view);
    DYDIT_CHECK(first || (place->second.dtype == view.dtype && place->second.shape == view.shape &&
                          std::memcmp(place->second.data, view.data, extent_bytes(view)) == 0),
                "{}: {} differs from the first block's; a DiT has one embedder for all blocks", folder_,
                from);
  }

  // One above the other; the bytes are copied to `memory`.
  void stack(const std::vector<std::string>& from, const std::string& to, std::vector<std::byte>& memory) {
    TensorView whole;
    for (const std::string& name : from) {
      const TensorView part = take(name);
      if (name == from[0]) {
        whole = part;
        whole.shape[0] = 0;
      }
      DYDIT_CHECK(part.dtype == whole.dtype && part.shape.size() == whole.shape.size() &&
                      std::equal(part.shape.begin() + 1, part.shape.end(), whole.shape.begin() + 1),
                  "{}: {} is {} {}, which does not fit {}", folder_, name, dtype_name(part.dtype),
                  shape_text(part.shape), from[0]);
      whole.shape[0] += part.shape[0];
      memory.insert(memory.end(), part.data, part.data + extent_bytes(part));
    }
    whole.data = memory.data();
    to_[to] = whole;
  }

  TensorViews result() && {
    DYDIT_CHECK(from_.empty(), "{}: tensor {} belongs to no part of a DiT", folder_,
                quote(from_.begin()->first));
    return std::move(to_);
  }

 private:
  TensorView take(const std::string& name) {
    const auto found = from_.find(name);
    DYDIT_CHECK(found != from_.end(), "{}: tensor {} is missing", folder_, name);
    DYDIT_CHECK(is_contiguous(found->second) && !found->second.shape.empty(),
                "{}: tensor {} does not lie in one piece", folder_, name);
    TensorView view = std::move(found->second);
    view.strides.clear();
    from_.erase(found);
    return view;
  }

  TensorViews from_, to_;
  const std::string folder_;
};

}  // namespace

bool is_diffusers_folder(const fs::path& path) {
  return is_there(path / kDiffusersPipeline) || is_there(path / "transformer" / kConfig) ||
         (is_there(path / kConfig) && has_diffusers_weights(path));
}

DiffusersDiT read_diffusers_folder(const fs::path& path) {
  const fs::path folder = transformer_of(path);
  const std::string config_name = (folder / kConfig).string();
  DiffusersDiT result;
  result.config = std::make_shared<Json>(
      parse_diffusers_config(MappedFile::open(folder / kConfig)->bytes(), config_name));
  const Json& config = *result.config;
  if (const fs::path index = path / kDiffusersPipeline; is_there(index)) {
    result.class_names =
        parse_id2label(MappedFile::open(index)->bytes(), config["num_classes"], index.string());
  }
  FolderWeights weights = read_diffusers_weights(folder);
  result.notes = std::move(weights.notes);
  result.sha256 = std::move(weights.sha256);
  result.files = std::move(weights.files);

  const int depth = config["depth"];
  DYDIT_CHECK(static_cast<size_t>(depth) <= weights.tensors.size(),
              "{}: speaks of {} blocks, but {} tensors are there", config_name, depth,
              weights.tensors.size());
  using Stacked = std::vector<std::vector<std::byte>>;
  auto stacked = std::make_shared<Stacked>();
  Renamer names(std::move(weights.tensors), folder.string());
  for (const auto& [from, to] : kOuter) names.module(std::string(from), std::string(to));
  for (int b = 0; b < depth; ++b) {
    const auto from_name = [&](std::string_view rest) { return block_name("transformer_blocks", b, rest); };
    const auto to_name = [&](std::string_view rest) { return block_name("blocks", b, rest); };
    for (const auto& [from, to] : kInBlocks) names.module(from_name(from), to_name(to));
    for (const auto& [from, to] : kCopies) names.copy(from_name(from), std::string(to));
    for (const char* part : {".weight", ".bias"}) {
      std::vector<std::string> parts;
      for (const char* name : kQkv) parts.push_back(from_name(name) + part);
      names.stack(parts, to_name(kQkvTogether) + part, stacked->emplace_back());
    }
  }
  result.tensors = std::move(names).result();
  result.memory = std::make_shared<const std::pair<decltype(result.files), std::shared_ptr<Stacked>>>(
      result.files, stacked);
  return result;
}

void write_diffusers_folder(const fs::path& path, const TensorViews& tensors, const Json& config,
                            const std::function<void()>& before_commit) {
  TensorViews renamed;
  const auto module = [&](const std::string& to, const std::string& from) {
    for (const char* part : {".weight", ".bias"}) renamed[to + part] = tensors.at(from + part);
  };
  for (const auto& [to, from] : kOuter) module(std::string(to), std::string(from));
  const int depth = config["depth"];
  for (int b = 0; b < depth; ++b) {
    const auto to_name = [&](std::string_view rest) { return block_name("transformer_blocks", b, rest); };
    for (const auto& [to, from] : kInBlocks) module(to_name(to), block_name("blocks", b, from));
    for (const auto& [to, from] : kCopies) renamed[to_name(to)] = tensors.at(std::string(from));
    for (const char* part : {".weight", ".bias"}) {
      TensorView view = tensors.at(block_name("blocks", b, kQkvTogether) + part);
      view.shape[0] /= static_cast<int64_t>(kQkv.size());
      for (const char* name : kQkv) {
        renamed[to_name(name) + part] = view;
        view.data += extent_bytes(view);
      }
    }
  }
  const int64_t channels = config["in_channels"], heads = config["num_heads"];
  const Json described = {{"_class_name", "DiTTransformer2DModel"},
                          {"activation_fn", "gelu-approximate"},
                          {"attention_bias", true},
                          {"attention_head_dim", config["hidden_size"].get<int64_t>() / heads},
                          {"in_channels", channels},
                          {"norm_elementwise_affine", false},
                          {"norm_eps", kNormEps},
                          {"norm_type", "ada_norm_zero"},
                          {"num_attention_heads", heads},
                          {"num_embeds_ada_norm", config["num_classes"]},
                          {"num_layers", depth},
                          {"out_channels", config["learn_sigma"] ? 2 * channels : channels},
                          {"patch_size", config["patch_size"]},
                          {"sample_size", config["input_size"]}};
  write_safetensors(path / kWeights, renamed, {{"format", "pt"}}, Durability::Normal, before_commit);
  write_output_file(path / kConfig, described.dump(2) + "\n");
}

}  // namespace dydit
