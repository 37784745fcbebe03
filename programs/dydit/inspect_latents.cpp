// See inspect_latents.h.
#include "inspect_latents.h"

#include <limits>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "dydit/base/machine.h"
#include "dydit/data/latents.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

using nlohmann::json;

// Values a channel, for people.
std::string list_text(const json& values) {
  constexpr size_t kMost = 8;
  std::vector<std::string> shown;
  for (const json& value : values) {
    if (shown.size() == kMost) break;
    shown.push_back(fmt::format("{:.4g}", value.get<double>()));
  }
  return fmt::format("{}{}", fmt::join(shown, ", "), values.size() > kMost ? ", ..." : "");
}

json latents_json(const std::string& path, const LatentSource& source) {
  const LatentInfo& info = source.info;
  json result = {{"file", path},
                 {"format", "latents"},
                 {"layout", kLatentLayoutNames[info.layout]},
                 {"images", source.labels.size()},
                 {"classes", source.classes.names.size()},
                 {"shape", {info.channels, info.side, info.side}},
                 {"dtype", dtype_name(info.dtype)},
                 {"flips", info.flips},
                 {"logvar", info.spread},
                 {"scaled", info.scaled},
                 {"scale", scale_to_json(info.scale)},
                 {"bytes", info.bytes}};
  if (source.classes.named) result["class_names"] = source.classes.names;
  if (!info.vae_sha256.empty()) result["vae_sha256"] = info.vae_sha256;
  if (!info.vae_kind.empty()) result["vae_kind"] = info.vae_kind;
  if (!info.channel_mean.empty()) result["channel_mean"] = info.channel_mean;
  if (!info.channel_std.empty()) result["channel_std"] = info.channel_std;
  if (!info.metadata.empty()) result["metadata"] = info.metadata;
  return result;
}

std::string scale_text(const json& result) {
  const json& scale = result["scale"];
  if (scale.contains("mean"))
    return fmt::format("(z - mean) {} / std; mean {}; std {}", scale["scaling"].get<double>(),
                       list_text(scale["mean"]), list_text(scale["std"]));
  return fmt::format("(z - {}) {}", scale["shift"].get<double>(), scale["scaling"].get<double>());
}

void print_latents(const json& result, const std::string& path) {
  const auto text = [&](const char* key) { return printable(result[key].get<std::string>()); };
  print_out("{}: latents, {}\n", path, text("layout"));
  print_out("images      {} of {} classes, {}\n", result["images"].get<int64_t>(),
            result["classes"].get<int64_t>(), result["flips"] == 2 ? "mirrored ones, too" : "none mirrored");
  print_out("latent      {} channels, {}x{}, {}{}, {}\n", result["shape"][0].get<int>(),
            result["shape"][1].get<int>(), result["shape"][2].get<int>(), text("dtype"),
            result["logvar"].get<bool>() ? ", a distribution each" : "",
            memory_text(result["bytes"].get<double>()));
  print_out("scale       {}{}\n", scale_text(result),
            result["scaled"].get<bool>() ? ", applied already" : "");
  for (const char* key : {"channel_mean", "channel_std"}) {
    if (result.contains(key)) print_out("{:<12}{}\n", key, list_text(result[key]));
  }
  if (result.contains("vae_kind")) print_out("vae         {}\n", text("vae_kind"));
  if (result.contains("vae_sha256")) print_out("vae sha256  {}\n", text("vae_sha256"));
  if (!result.contains("metadata")) return;
  for (const char* key : {"image_side", "crop", "encode_dtype", "source", "written_by"}) {
    if (result["metadata"].contains(key))
      print_out("{:<12}{}\n", key, printable(result["metadata"][key].get<std::string>()));
  }
}

}  // namespace

void inspect_latents(const Cli& cli, const std::string& path) {
  constexpr uint64_t kAll = std::numeric_limits<uint64_t>::max();
  const LatentSource source = open_latents(path, {.threads = default_threads(), .hashed_bytes = kAll});
  const json result = latents_json(path, source);
  cli.print(result, [&] { print_latents(result, path); });
}

}  // namespace dydit
