#include "orders.h"

#include <stdexcept>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/serve/order.h"

namespace dydit::fuzz {
namespace {

constexpr size_t kMostBytes = size_t{1} << 20;  // that the server reads

const std::vector<ModelTerms>& models() {
  static const DiTConfig dynamic = {.input_size = 8,
                                    .patch_size = 2,
                                    .in_channels = 3,
                                    .hidden_size = 64,
                                    .depth = 2,
                                    .num_heads = 4,
                                    .mlp_hidden = 256,
                                    .num_classes = 5,
                                    .width_routers = true,
                                    .token_routers = true};
  static const std::vector<ModelTerms> terms = [] {
    DiTConfig plain = dynamic;
    plain.width_routers = plain.token_routers = false;
    return std::vector<ModelTerms>{{"dynamic", dynamic, {"cat", "dog", "a, b", "\u00e9", "10"}, 8},
                                   {"static", plain, {}, 8}};
  }();
  return terms;
}

// What is taken can be meant; what is refused is told in JSON, with its status.
template <typename Read>
void read_order(Bytes bytes, const Read& read) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.size() > kMostBytes) throw Error("FILE: larger than a body may be");
  try {
    const Order order = read(text);
    const OrderRules rules;
    const Request& request = order.request;
    if (order.model >= models().size() || request.num_images < 1 || request.num_images > rules.max_images ||
        request.classes.empty() || !(order.seconds > 0 && order.seconds <= rules.max_seconds) ||
        request.total_steps() < 1)
      throw std::logic_error("is taken and cannot be meant");
    check_request(models()[order.model].config, request);
  } catch (const Refusal& refusal) {
    if (refusal.status < 400 || refusal.status > 499) throw std::logic_error("is no client's fault");
    if (error_answer(refusal).dump().empty()) throw std::logic_error("cannot be told");
    throw Error(std::string("FILE: ") + refusal.what());
  }
}

std::vector<Hostile> hostile() {
  const auto filled = [](const std::string& begin, const std::string& part, const std::string& end) {
    std::string out = begin;
    while (out.size() + part.size() + end.size() < kMostBytes) out += part;
    return out + end;
  };
  return {
      {"nested lists", [filled] { return filled("{\"plan\":", "[", ""); }},
      {"classes without end", [filled] { return filled(R"({"prompt":"1)", ",1", "\"}"); }},
      {"labels without end", [filled] { return filled(R"({"prompt":"1","class_labels":[1)", ",1", "]}"); }},
      {"timesteps without end", [filled] { return filled(R"({"prompt":"1","timesteps":[1)", ",1", "]}"); }},
      {"a name of a megabyte", [filled] { return filled(R"({"prompt":")", "x", "\"}"); }},
      {"a field of a megabyte", [filled] { return filled("{\"", "x", "\":1}"); }},
      {"a model of a megabyte", [filled] { return filled(R"({"prompt":"1","model":")", "x", "\"}"); }},
      {"as many fields as fit", [filled] { return filled("{", "\"\":0,", "\"n\":1}"); }},
      {"steps of a plan as many as fit",
       [filled] {
         return filled(
             R"({"prompt":"1","plan":{"dydit_plan":1,"depth":2,"num_heads":4,"num_tokens":16,"steps":[{"t":1})",
             R"(,{"t":1,"attn":"cc","mlp":"cc"})", "]}}");
       }},
      {"100 MB", [] { return std::string(100'000'000, ' '); }}};
}

}  // namespace

std::vector<Target> order_targets() {
  const std::string plan =
      R"({"dydit_plan":1,"depth":2,"num_heads":4,"num_tokens":16,"steps":[{"t":999,"attn":"cc","mlp":"cc"},)"
      R"({"t":9,"attn":"0c","mlp":"c0"}]})";
  std::vector<std::string> tokens = {"\"prompt\":",
                                     "\"n\":",
                                     "\"seed\":",
                                     "\"plan\":",
                                     "\"cache\":\"taylor:3,1\"",
                                     "\"cache\":\"fora:2\"",
                                     "\"budget\":",
                                     "\"timesteps\":[",
                                     "\"stream\":true",
                                     "\"guide_every\":",
                                     "\"class_labels\":[",
                                     "\"sampler\":\"",
                                     "dpm++",
                                     "ddim",
                                     "ddpm",
                                     "\"mode\":\"static\"",
                                     "\"model\":\"static\"",
                                     "class:",
                                     "name:",
                                     "a, b",
                                     "\\\"",
                                     "{",
                                     "}",
                                     "[",
                                     "]",
                                     "\"",
                                     ":",
                                     ",",
                                     "null",
                                     "true",
                                     "false",
                                     "NaN",
                                     "1e999",
                                     "-1",
                                     "0.5",
                                     "18446744073709551615",
                                     "18446744073709551616",
                                     "\\u0000",
                                     "\\ud800",
                                     "\xff"};
  const auto generation = [](Bytes bytes) {
    read_order(bytes, [](std::string_view text) { return read_generation(text, models(), {}); });
  };
  const auto txt2img = [](Bytes bytes) {
    read_order(bytes, [](std::string_view text) { return read_txt2img(text, models(), {}); });
  };
  return {
      {.name = "generation",
       .seeds =
           {R"({"prompt":"cat","n":2,"seed":7,"num_inference_steps":9,"guidance_scale":1.5,"sampler":"ddim","eta":0.5,)"
            R"("size":"8x8","response_format":"url","output_format":"png","stream":true,"partial_images":2,)"
            R"("progress":true,"timeout_s":5,"user":"me","quality":"auto","mode":"static","cost_map":false})",
            R"({"class_labels":[1,2],"seed":"18446744073709551615","model":"dynamic","cache":"taylor:3,1","guide_every":2,)"
            R"("guide_from":900,"guide_to":10,"cost_map":true})",
            R"({"prompt":"class:3","plan":)" + plan + "}",
            R"({"prompt":"4","model":"static","timesteps":[999,500,3],"guidance_scale":1})",
            R"({"prompt":"dog,name:10","budget":0.25,"num_inference_steps":50})"},
       .tokens = tokens,
       .hostile = hostile(),
       .read = generation},
      {.name = "txt2img",
       .seeds =
           {R"({"prompt":"cat","negative_prompt":"","seed":-1,"steps":9,"cfg_scale":2,"sampler_name":"DPM++ 2M",)"
            R"("width":8,"height":8,"batch_size":2,"n_iter":2,"restore_faces":false,"styles":[]})",
            R"({"prompt":"1","override_settings":{"sd_model_checkpoint":"static"},"sampler_index":"DDIM","eta":0.5,)"
            R"("alwayson_scripts":{},"denoising_strength":0.0})",
            R"({"prompt":"dog","plan":)" + plan + "}"},
       .tokens = tokens,
       .hostile = hostile(),
       .read = txt2img}};
}

}  // namespace dydit::fuzz
