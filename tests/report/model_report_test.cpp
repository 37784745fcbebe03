// The page has a section for each thing that is known, its numbers, and no markup of strangers.
#include "dydit/report/model_report.h"

#include <gtest/gtest.h>

#include "tests/support/random_model.h"

namespace dydit {
namespace {

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// The configuration is all that a page takes of the weights.
Checkpoint model() {
  Checkpoint checkpoint;
  checkpoint.path = "folder/a<b>.safetensors";
  checkpoint.format = "safetensors";
  checkpoint.config = test::tiny_config();
  checkpoint.lambda = 0.5;
  checkpoint.class_names = {"<b>&\"'", "dog", "ant", "bee", "cow"};
  checkpoint.notes = {{"trained on", "<script>alert(1)</script>"}};
  checkpoint.sha256 = "0123456789abcdef";
  return checkpoint;
}

ReportSample sample(int index) {
  return {.index = index,
          .label = index,
          .class_name = index == 0 ? "<b>&\"'" : "dog",
          .picture = {2, 2, 1, {0, 1, 2, 3}},
          .required_gmacs = 1.5,
          .required_share = 0.48,
          .executed_gmacs = 1.7,
          .seconds = 0.25,
          .token_shares = {0.25, 0.75},
          .token_map = {1, 1, 3, {0, 0, 0}},
          .stretch_maps = {{1, 1, 3, {0, 0, 0}}, {1, 1, 3, {9, 9, 9}}}};
}

ReportRun run() {
  return {.facts = {{"sampler", "ddim"}},
          .timesteps = {0, 500},
          .samples = {sample(0), sample(1)},
          .stretches = {"500", "0"},
          .scale = {1, 1, 3, {0, 0, 0}},
          .lowest_share = 0.1,
          .highest_share = 0.9};
}

RunPlan widths(const DiTConfig& config) {
  RunPlan plan;
  plan.config = config;
  const BlockWidth all{{1, 1, 1, 1}, {1, 1, 1, 1}}, half{{1, 0, 1, 0}, {1, 0, 0, 1}};
  plan.steps = {{.timestep = 0, .mode = Mode::Dynamic, .blocks = {all, all}},
                {.timestep = 500, .mode = Mode::Dynamic, .blocks = {half, half}}};
  return plan;
}

TEST(ReportHtml, OfAFileAloneSaysWhatItIs) {
  const Checkpoint checkpoint = model();
  const std::string html = report_html({.checkpoint = checkpoint});
  for (const char* part : {"<h1>a&lt;b&gt;.safetensors</h1>", "id=\"model\"", "DyDiT (2 blocks", "threshold",
                           "0123456789abcdef", "dog, ant, bee, cow"})
    EXPECT_TRUE(holds(html, part)) << part;
  for (const char* part :
       {"id=\"widths\"", "id=\"samples\"", "id=\"tokens\"", "id=\"quality\"", "id=\"plans\""})
    EXPECT_FALSE(holds(html, part)) << part;
}

TEST(ReportHtml, EscapesWhatComesFromFiles) {
  const Checkpoint checkpoint = model();
  const std::string html = report_html({.checkpoint = checkpoint, .run = run()});
  EXPECT_FALSE(holds(html, "<script"));
  EXPECT_FALSE(holds(html, "<b>&\"'"));
  EXPECT_TRUE(holds(html, "&lt;script&gt;alert(1)&lt;/script&gt;"));
  EXPECT_TRUE(holds(html, "<b>&lt;b&gt;&amp;&quot;&#39;</b>"));  // the caption of the first image
  EXPECT_TRUE(holds(html, "alt=\"Image 0: &lt;b&gt;&amp;&quot;&#39;\""));
}

TEST(ReportHtml, ManyClassNamesAreFolded) {
  Checkpoint checkpoint = model();
  EXPECT_FALSE(holds(report_html({.checkpoint = checkpoint}), "<details>"));
  checkpoint.class_names.assign(1000, "name");
  EXPECT_TRUE(holds(report_html({.checkpoint = checkpoint}), "<details><summary>1000 names</summary>"));
}

TEST(ReportHtml, TellsWhatAnImageCost) {
  const Checkpoint checkpoint = model();
  const std::string html = report_html({.checkpoint = checkpoint, .run = run()});
  EXPECT_TRUE(holds(html, "1.5 GMACs (48.0 % of static)<br>0.25 s<br>50.0 % of tokens"));
  EXPECT_TRUE(holds(html, "the engine multiplied 1.7, padding included, in 0.25 s"));
}

TEST(ReportHtml, TellsTokensByStretchInTheOrderOfSampling) {
  const Checkpoint checkpoint = model();
  const std::string html = report_html({.checkpoint = checkpoint, .run = run()});
  EXPECT_TRUE(holds(html, "<td class=\"n\">500</td><td class=\"n\">75.0 %</td>")) << html;
  EXPECT_TRUE(holds(html, "<td class=\"n\">0</td><td class=\"n\">25.0 %</td>"));
  EXPECT_TRUE(holds(html, "share of MLPs that each token entered, t 500\""));
  EXPECT_TRUE(holds(html, "10.0 % <img"));
}

TEST(ReportHtml, WithoutTokenRoutersThereAreNoMaps) {
  Checkpoint checkpoint = model();
  checkpoint.config.token_routers = false;
  ReportRun plain{.facts = {}, .timesteps = {0}, .samples = {sample(0)}};
  plain.samples[0].token_shares.clear();
  const std::string html = report_html({.checkpoint = checkpoint, .run = plain});
  EXPECT_FALSE(holds(html, "id=\"tokens\""));
  EXPECT_TRUE(holds(html, "No token router decides: all tokens enter all MLPs"));
}

TEST(ReportHtml, LatentsWithoutAnAutoencoderHaveCostsAlone) {
  const Checkpoint checkpoint = model();
  ReportRun latents = run();
  for (ReportSample& one : latents.samples) one.picture = {};
  const std::string html = report_html({.checkpoint = checkpoint, .run = latents});
  EXPECT_TRUE(holds(html, "no autoencoder was given (--vae)"));
  EXPECT_TRUE(holds(html, "1.5 GMACs"));
}

TEST(ReportHtml, TellsThePlanInNumbers) {
  const Checkpoint checkpoint = model();
  const std::string html = report_html({.checkpoint = checkpoint, .widths = widths(checkpoint.config)});
  EXPECT_TRUE(holds(html, "<title>block 0, t 500 to 500: 2 of 4</title>"));
  EXPECT_TRUE(
      holds(html, "<td class=\"n\">50.0 %</td><td class=\"n\">50.0 %</td><td class=\"n\">100.0 %</td>"));
}

TEST(ReportHtml, FetchesNothing) {
  const Checkpoint checkpoint = model();
  const std::string html =
      report_html({.checkpoint = checkpoint, .widths = widths(checkpoint.config), .run = run()});
  EXPECT_TRUE(holds(html, "default-src 'none'; img-src data:; style-src 'unsafe-inline'"));
  for (const char* part : {"<link", "<script", "url(", "@import", "https:"})
    EXPECT_FALSE(holds(html, part)) << part;
}

TEST(ModelTitle, OfAFolderIsItsName) {
  Checkpoint checkpoint = model();
  checkpoint.path = "some/folder/";
  EXPECT_TRUE(model_title(checkpoint).starts_with("folder: DyDiT")) << model_title(checkpoint);
}

}  // namespace
}  // namespace dydit
