// Results are read strictly, unknown keys counted, and only what compares shares a plot.
#include "dydit/report/results.h"

#include <gtest/gtest.h>

#include "tests/support/files.h"

namespace dydit {
namespace {

const std::string kWhole =
    R"({"fid": 12.5, "fid_error": 0.25, "kid": -0.001, "kid_error": 2e-4, "precision": 0.5, "n": 5000,
        "extractor": "resnet56", "weights_sha256": "0123456789abcdef", "protocol": "adm", "resize": "none",
        "reference": "ref.npz", "reference_n": 10000, "model": "dydit.safetensors", "name": "lambda 0.5",
        "seed": 18446744073709551615, "recall_error": 0.125, "recall": 0.25, "static_gmacs_per_image": 62.8,
        "nearest": {"median": 3.5, "reference_median": 4, "closer_share": 0.01, "odd": 1}, "fid_raw": 12.5, "extractor_dtype": "f32", "gmacs_per_image": 31.4, "warnings": ["few <images>"], "novel": 1, "later": {}})";

std::string with(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(EvalResult, KnownKeysAreReadAndOthersCounted) {
  const EvalResult result = parse_eval_result(kWhole, "a.json");
  EXPECT_EQ(result.numbers.at("fid"), 12.5);
  EXPECT_EQ(result.numbers.at("kid"), -0.001);
  EXPECT_EQ(result.texts.at("seed"), "18446744073709551615");
  EXPECT_EQ(result.warnings, std::vector<std::string>{"few <images>"});
  EXPECT_EQ(result.passed_over, (std::vector<std::string>{"later", "nearest_odd", "novel"}));
}

TEST(EvalResult, WhatIsNoneIsRefusedInALine) {
  const auto refused = [](const std::string& text, const std::string& part) {
    test::expect_error([&] { parse_eval_result(text, "a.json"); }, part);
  };
  refused("", "a.json: line 1 is not JSON yet where the text ends");
  refused("fid 3", "a.json: line 1 is not JSON from");
  refused(with(kWhole, "12.5", "NaN"), "a.json: line 1 is not JSON from \"NaN");
  refused(with(kWhole, "12.5", "1e999"), "a.json: a number is too large");
  refused(with(kWhole, "12.5", "null"), "a.json: fid is null; a number is wanted");
  refused(with(kWhole, "12.5", "\"low\""), "a.json: fid is \"low\"; a number is wanted");
  refused(with(kWhole, "0.25", "-1"), "a.json: fid_error is -1; a number from 0 is wanted");
  refused(with(kWhole, "\"n\": 5000,", ""),
          "a.json: n is missing, without which its numbers compare with no others");
  refused(with(kWhole, "\"extractor\": \"resnet56\",", ""), "a.json: extractor is missing");
  refused(with(kWhole, "{\"median\": 3.5, \"reference_median\": 4, \"closer_share\": 0.01, \"odd\": 1}", "3"),
          "a.json: nearest is 3; an object {...} is wanted");
  refused("[]", "a.json: holds neither fid nor another measure");
  refused(R"({"deciles": []})", "a.json: holds neither fid nor another measure");
  refused(std::string((16 << 20) + 1, ' '), "a.json: a result of 16777217 bytes; at most");
}

TEST(EvalResult, MutantsAreReadOrRefused) {
  EXPECT_GT(
      test::refused_mutations(kWhole, 3000, [](const std::string& text) { parse_eval_result(text, "a"); }),
      0);
}

TEST(ComparableGroups, DifferInWhatMakesNumbersIncomparable) {
  std::vector<EvalResult> results = {parse_eval_result(kWhole, "a")};
  for (const auto& [from, to] : {std::pair{"5000", "1000"},
                                 {"resnet56", "lite0"},
                                 {"0123456789abcdef", "ff"},
                                 {"\"f32\"", "\"bf16\""},
                                 {"\"adm\"", "\"ours\""},
                                 {"\"none\"", "\"bicubic\""},
                                 {"ref.npz", "other.npz"},
                                 {"10000", "50000"}})
    results.push_back(parse_eval_result(with(kWhole, from, to), "b"));
  EXPECT_EQ(comparable_groups(results).size(), results.size());
  results = {parse_eval_result(kWhole, "a"), parse_eval_result(with(kWhole, "31.4", "62.8"), "b"),
             parse_eval_result(with(kWhole, "lambda 0.5", "static"), "c")};
  ASSERT_EQ(comparable_groups(results).size(), 1u);
  EXPECT_EQ(comparable_groups(results)[0].size(), 3u);
}

TEST(ComparableGroups, OneReferenceUnderTwoNamesIsOne) {
  const std::string hashed = with(kWhole, "\"ref.npz\"", "\"ref.npz\", \"reference_sha256\": \"ab\"");
  const std::vector<EvalResult> results = {parse_eval_result(hashed, "a"),
                                           parse_eval_result(with(hashed, "ref.npz", "./ref.npz"), "b")};
  EXPECT_EQ(comparable_groups(results).size(), 1u);
}

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST(ResultsHtml, EachGroupHasItsPlotsAndSaysWhatItIs) {
  const std::vector<EvalResult> results = {parse_eval_result(kWhole, "a.json"),
                                           parse_eval_result(with(kWhole, "resnet56", "lite0"), "b.json")};
  const std::string html = results_html(results);
  EXPECT_EQ(count(html, "<svg"), 4u);  // FID and KID of each
  EXPECT_EQ(count(html, "<table"), 4u);
  EXPECT_NE(html.find("extractor lite0 (weights 0123456789)"), std::string::npos);
  EXPECT_NE(html.find("fall into 2 groups"), std::string::npos);
  EXPECT_NE(html.find("<td class=\"n\">12.5 ± 0.25</td>"), std::string::npos);
  EXPECT_NE(html.find("<td class=\"n\">0.25 ± 0.125</td>"), std::string::npos);
  EXPECT_NE(html.find("<td class=\"n\">31.4</td><td class=\"n\">50.0 %</td>"), std::string::npos);
  EXPECT_NE(html.find("few &lt;images&gt;"), std::string::npos);
  EXPECT_NE(html.find("3 keys are not known here and were passed over: later, nearest_odd, novel"),
            std::string::npos);
}

TEST(ResultsHtml, WithoutACostAResultIsInTheTableAlone) {
  const std::string free = with(kWhole, "\"gmacs_per_image\": 31.4,", "");
  EXPECT_EQ(count(results_html(std::vector{parse_eval_result(free, "a")}), "<svg"), 0u);
  const std::vector<EvalResult> both = {parse_eval_result(free, "a"), parse_eval_result(kWhole, "b")};
  EXPECT_EQ(count(results_html(both), "Not drawn, without a cost: 1."), 2u);
}

TEST(PlanCurvesHtml, HasAPointAndARowForEachPlan) {
  const std::vector<PlanCurve> curves = {
      {"a.json", "ddim", {{0.1, 0.2, 0.05, 0.01, 30.0, "fora:2"}, {1, 1, 0, 0, {}, "none"}}}};
  const std::string html = plan_curves_html(curves);
  EXPECT_EQ(count(html, "<circle"), 2u);
  EXPECT_NE(html.find("<td>fora:2</td><td class=\"n\">0.1000</td><td class=\"n\">0.2000</td>"),
            std::string::npos);
  EXPECT_NE(html.find("<td class=\"n\">0.05000 ± 0.01000</td><td class=\"n\">30.00</td>"), std::string::npos);
}

}  // namespace
}  // namespace dydit
