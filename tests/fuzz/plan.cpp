#include "plan.h"

#include <stdexcept>
#include <string_view>

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/plan/plan_spec.h"

namespace dydit::fuzz {
namespace {

constexpr size_t kMostBytes = size_t{1} << 20;  // that are read

// 2 blocks of 4 heads on 16 tokens.
const DiTConfig kModel = {.input_size = 8,
                          .hidden_size = 64,
                          .depth = 2,
                          .num_heads = 4,
                          .mlp_hidden = 256,
                          .width_routers = true,
                          .token_routers = true};

void read_plan_text(Bytes bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const PlanSpec spec = parse_plan(text, kModel, "FILE");
  check_spec(spec, kModel, /*guided=*/false, "FILE");
  check_spec(spec, kModel, /*guided=*/true, "FILE");
  if (parse_plan(plan_text(spec, kModel), kModel, "FILE") != spec)
    throw std::logic_error("is written otherwise");
}

std::string plan_of(const std::string& top, const std::string& steps) {
  return R"({"dydit_plan":1,"depth":2,"num_heads":4,"num_tokens":16,)" + top + R"("steps":[)" + steps + "]}";
}

// `part` as often as fits, and an end without a comma.
std::string filled(const std::string& part, const std::string& end) {
  std::string out;
  while (out.size() + part.size() + end.size() + 200 < kMostBytes) out += part;
  return out + end;
}

constexpr const char* kFirst = R"({"t":999,"attn":"cc","mlp":"cc"})";

// As many different ranges as fit, in the one step that is taken last.
std::string late_ranges() {
  std::string steps = kFirst;
  for (int t = 998; t > 0; --t) steps += fmt::format(R"(,{{"t":{},"attn":"cc","mlp":"cc"}})", t);
  steps += R"(,{"t":0,"attn":"cc","mlp":"cc","ranges":[)";
  for (int i = 0; steps.size() + 300 < kMostBytes; ++i)
    steps += fmt::format(R"({{"from":{},"to":{},"order":0}},)", i, i + 1);
  return plan_of("", steps + R"({"from":0,"to":1,"order":0}]})");
}

}  // namespace

Target plan_target() {
  const std::string step = R"({"t":1,"attn":"cc","mlp":"cc"})";
  return {
      .name = "plan",
      .seeds =
          {plan_of(
               R"("name":"a","forecast":"hermite:0.5","note":"b","sampler":"ddim","eta":0,"cfg_scale":1.5,)"
               R"("mode":"static","model_sha256":"00",)",
               std::string(kFirst) +
                   R"(,{"t":900,"attn":"10","mlp":"c4","guide":"reuse:1","scale":2.5}, )"
                   R"({"t":8,"attn":"c-","mlp":"c-","ranges":[{"from":1,"to":2,"order":0}],"guide":"off"})"),
           plan_of(
               "",
               std::string(kFirst) +
                   R"(,{"t":500,"attn":"cc","mlp":"cc","restart":true,"heads":["1010","1111"],)"
                   R"("groups":["1000","1001"],"tokens":[16,3]},{"t":0,"attn":"0c","mlp":"c0","tokens":"all"})"),
           plan_of(
               R"("forecast":"taylor",)",
               std::string(kFirst) +
                   R"(,{"t":7,"attn":"--","mlp":"--","ranges":[{"from":0,"to":1,"order":2},{"from":1,"to":2,"order":0}]})")},
      .tokens = {"\"t\":",
                 "\"attn\":\"",
                 "\"mlp\":\"",
                 "\"ranges\":[",
                 "{\"from\":0,\"to\":1,\"order\":0}",
                 "\"guide\":\"",
                 "off",
                 "full",
                 "reuse:",
                 "\"scale\":",
                 "\"restart\":true,",
                 "\"heads\":[\"1111\"]",
                 "\"tokens\":",
                 "\"router\"",
                 "\"level\":0,",
                 "cc",
                 "c",
                 "-",
                 "0",
                 "4",
                 "{",
                 "}",
                 "[",
                 "]",
                 "\"",
                 ":",
                 ",",
                 "null",
                 "true",
                 "NaN",
                 "1e999",
                 "1e39",
                 "-1",
                 "1.0",
                 "18446744073709551615",
                 "\\u0000",
                 "\\ud800"},
      .hostile = {{"nested lists",
                   [] { return plan_of("\"note\":" + std::string(kMostBytes - 200, '[') + ",", ""); }},
                  {"a step as often as fits", [step] { return plan_of("", filled(step + ",", step)); }},
                  {"empty lists", [] { return plan_of("", filled("[],", "[]")); }},
                  {"a thousand steps, the last of as many ranges as fit", late_ranges},
                  {"a key of a megabyte",
                   [] { return plan_of('"' + std::string(kMostBytes - 200, 'x') + "\":1,", ""); }},
                  {"as many keys as fit",
                   [] {
                     std::string keys;
                     for (int i = 0; keys.size() + 200 < kMostBytes; ++i) keys += fmt::format("\"{}\":0,", i);
                     return plan_of(keys, "");
                   }},
                  {"actions of a megabyte",
                   [] {
                     return plan_of("", R"({"t":1,"attn":")" + std::string(kMostBytes - 200, 'c') + "\"}");
                   }},
                  {"100 MB", [] { return std::string(100'000'000, ' '); }}},
      .read = read_plan_text};
}

}  // namespace dydit::fuzz
