// The page that dydit report writes: what a model is, its plans, images that it made and where their
// computation went, quality against cost. Of what is not there the page has no section.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "dydit/io/image.h"
#include "dydit/model/checkpoint.h"
#include "dydit/plan/run_plan.h"
#include "dydit/report/html.h"
#include "dydit/report/results.h"

namespace dydit {

/// An image that the model made for the page.
struct ReportSample {
  int index = 0, label = 0;
  std::string class_name = {};  // empty: the model has no names
  Image picture = {};           // no pixels: it is a latent that nobody decoded
  double required_gmacs = 0, required_share = 0, executed_gmacs = 0, seconds = 0;
  double decode_seconds = 0;  // 0: nothing was decoded
  // Of a run that routes tokens, else empty: the share of tokens that entered an MLP at each step of the plan
  // (timesteps ascending), and maps of them, the whole run's and each stretch's.
  std::vector<double> token_shares = {};
  Image token_map = {};
  std::vector<Image> stretch_maps = {};
};

struct ReportRun {
  std::vector<Fact> facts;
  std::vector<double> timesteps;            // of a table, else noise shares; the noisiest last
  std::string time_axis;                    // what they are
  std::vector<ReportSample> samples;        // at least one
  std::vector<std::string> stretches = {};  // of timesteps, in the order of sampling: "980 to 820"
  Image scale = {};                         // the maps' colours from the lowest share to the highest
  double lowest_share = 0, highest_share = 1;
};

/// A picture that came in a file.
struct ReportPicture {
  Image image;
  std::string title, caption = {};
};

struct ModelReport {
  const Checkpoint& checkpoint;
  std::vector<Fact> facts = {};        // more of what it is
  std::optional<RunPlan> widths = {};  // of a DyDiT, evenly over the timesteps
  std::optional<RunPlan> plan = {};    // of a run, where it has actions or guidance of its own
  std::vector<Fact> plan_facts = {};
  std::optional<ReportRun> run = {};
  std::vector<ReportPicture> pictures = {};
  std::vector<EvalResult> results = {};
  std::vector<PlanCurve> curves = {};
};

/// "model.safetensors: DyDiT (8 blocks ...), lambda 0.5"
std::string model_title(const Checkpoint& checkpoint);

/// The whole page.
std::string report_html(const ModelReport& report);

}  // namespace dydit
