#include "latents.h"

#include <fmt/format.h>

#include "dydit/io/bytes.h"
#include "dydit/io/latents_index.h"
#include "repair.h"

namespace dydit::fuzz {
namespace {

constexpr size_t kMostBytes = size_t{2} << 20;  // that are read
const std::string kFile = "FILE";

// What every shard says as well, as JSON texts.
constexpr const char* kMetadata =
    R"("dydit_latents":"1","images":"5","shards":"2","flips":"2","scaling_factor":"0.18215","shift_factor":"0",)"
    R"("class_names":"[\"a\",\"b\"]","vae_sha256":"00","source":"{\"name\": \"x\"}")";

std::string index_of(const std::string& more) {
  return fmt::format(
      R"({{{}{},"files":[{{"file":"latents-00000-of-00002.safetensors","images":3,"sha256":"00"}},)"
      R"({{"file":"latents-00001-of-00002.safetensors","images":2,"sha256":"01"}}]}})",
      kMetadata, more);
}

std::string shard_of(const std::string& dtype, size_t size, const std::string& more) {
  const size_t numbers = 2 * 2 * 1 * 2 * 2, mean = 16 + numbers * size,
               end = mean + (more.empty() ? 0 : numbers * size);
  const std::string header = fmt::format(
      R"({{"__metadata__":{{{},"shard":"1","first_index":"3"}},"labels":{{"dtype":"I64","shape":[2],)"
      R"("data_offsets":[0,16]}},"mean":{{"dtype":"{}","shape":[2,2,1,2,2],"data_offsets":[16,{}]}}{}}})",
      kMetadata, dtype, mean,
      more.empty() ? ""
                   : fmt::format(R"(,"{}":{{"dtype":"{}","shape":[2,2,1,2,2],"data_offsets":[{},{}]}})", more,
                                 dtype, mean, end));
  std::string out;
  append_little<uint64_t>(out, header.size());
  return out + header + std::string(end, '\1');
}

void read_index(Bytes bytes) { parse_latents_index(bytes, kFile); }

void read_shard(Bytes bytes) {
  static const LatentsIndex index = [] {
    const std::string text = index_of("");
    return parse_latents_index(bytes_of(text), kFile);
  }();
  const SafetensorsFile file = parse_safetensors(bytes, kFile);
  const LatentShard shard = parse_latent_shard(file, index, 1, kFile);
  volatile unsigned sum = 0;
  for (const TensorView* view : {&shard.mean, &shard.labels, shard.logvar ? &*shard.logvar : &shard.mean}) {
    for (size_t i = 0; i < extent_bytes(*view); ++i) sum = sum + std::to_integer<unsigned>(view->data[i]);
  }
}

std::string filled(const std::string& part) {
  std::string out;
  while (out.size() + part.size() + 1000 < kMostBytes) out += part;
  return out;
}

}  // namespace

Target latents_index_target() {
  return {
      .name = "latents_index",
      .seeds =
          {index_of(""),
           index_of(
               R"(,"latents_mean":"[0.5]","latents_std":"[2]","channel_mean":[1e-3],"channel_std":[2])")},
      .tokens = {"\"files\":[",
                 "\"file\":",
                 "\"images\":",
                 "\"sha256\":",
                 "\"latents_mean\":\"[1]\",",
                 "latents_std",
                 "\"0\"",
                 "\"nan\"",
                 "\"1e999\"",
                 "\"-1\"",
                 "9223372036854775807",
                 "1e999",
                 "null",
                 "{",
                 "}",
                 "[",
                 "]",
                 "\"",
                 ":",
                 ",",
                 "\\u0000",
                 "\\ud800",
                 "latents-00000-of-00002.safetensors",
                 "../",
                 "-of-"},
      .hostile = {{"a million numbers", [] { return index_of(",\"channel_mean\":[" + filled("1,") + "1]"); }},
                  {"a million numbers in a text",
                   [] { return index_of(",\"latents_mean\":\"[" + filled("1,") + "1]\""); }},
                  {"files without an end",
                   [] { return "{\"dydit_latents\":\"1\",\"files\":[" + filled("{},") + "{}]}"; }},
                  {"as many files as are read",
                   [] {
                     std::string files;
                     for (int i = 0; i < 8191; ++i) files += "{},";
                     return "{\"dydit_latents\":\"1\",\"files\":[" + files + "{}]}";
                   }},
                  {"a deep text", [] { return index_of(",\"latents_std\":\"" + filled("[") + "\""); }},
                  {"100 MB", [] { return std::string(100'000'000, ' '); }}},
      .read = read_index};
}

Target latent_shard_target() {
  return {.name = "latent_shard",
          .seeds = {shard_of("F16", 2, "logvar"), shard_of("BF16", 2, ""), shard_of("F32", 4, "logvar")},
          .tokens = {R"("dtype":)", R"("shape":[)", R"("data_offsets":[)", R"("F32")", R"("F16")", R"("I64")",
                     "logvar", "mean", "labels", "first_index", "shard", "\"3\"", "0", "[", "]", "{", "}",
                     ",", "\""},
          .hostile = {},
          .read = read_shard,
          .finish = repair_safetensors};
}

}  // namespace dydit::fuzz
