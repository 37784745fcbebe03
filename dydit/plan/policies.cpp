// Each policy says what a step does, given its index: S - 1 is the first that is taken.
#include "dydit/plan/policies.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <optional>
#include <string_view>
#include <vector>

#include <ATen/ATen.h>

#include "dydit/base/enum_names.h"
#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/io/text.h"
#include "dydit/io/torch_file.h"
#include "dydit/model/checkpoint.h"

namespace dydit {
namespace {

enum class Policy { None, Fora, Taylor, Lagrange, Chebyshev, Stack, Delta, L2c, Skip };
constexpr EnumNames<Policy, 9> kPolicyNames = {"policy",
                                               {{"none", Policy::None},
                                                {"fora", Policy::Fora},
                                                {"taylor", Policy::Taylor},
                                                {"lagrange", Policy::Lagrange},
                                                {"chebyshev", Policy::Chebyshev},
                                                {"stack", Policy::Stack},
                                                {"delta", Policy::Delta},
                                                {"l2c", Policy::L2c},
                                                {"skip", Policy::Skip}}};

constexpr double kTheta = 0.1;  // of L2C

// "taylor:3,1" in parts.
struct Spelling {
  const std::string& text;  // the whole
  Policy policy;
  std::vector<std::string_view> args;
};

Spelling parse_spelling(const std::string& text) {
  const size_t colon = std::min(text.find(':'), text.size());
  const std::string_view all = text;
  const auto policy = kPolicyNames.find(all.substr(0, colon));
  DYDIT_USAGE_CHECK(policy, "policy {} is unknown; choose from {}", quote(text), kPolicyHelp);
  if (colon == text.size()) return {text, *policy, {}};
  return {text, *policy, comma_parts(all.substr(colon + 1))};
}

void check_count(const Spelling& spelling, size_t least, size_t most) {
  DYDIT_USAGE_CHECK(spelling.args.size() >= least && spelling.args.size() <= most,
                    "policy {} has {} arguments; choose from {}", quote(spelling.text), spelling.args.size(),
                    kPolicyHelp);
}

int whole(const Spelling& spelling, size_t i, const char* what, int low, int high) {
  const auto value = parse_number<int>(spelling.args[i]);
  DYDIT_USAGE_CHECK(value && *value >= low && *value <= high,
                    "policy {}: {} is {}; a whole number from {} to {} is wanted", quote(spelling.text), what,
                    quote(spelling.args[i]), low, high);
  return *value;
}

// N: every how many steps one is computed.
int interval(const Spelling& spelling) { return whole(spelling, 0, "N", 1, kNumTrainTimesteps); }

// What steps do, given their index.
using StepMaker = std::function<StepSpec(int index)>;

struct Maker {
  const DiTConfig& config;
  std::span<const double> timesteps;
  int S = static_cast<int>(timesteps.size());

  StepSpec step(Action action) const {
    const std::vector<Action> all(config.depth, action);
    return {.attn = all, .mlp = all};
  }
  StepSpec computed() const { return step(kCompute); }
  StepSpec without(int from, int to, int order) const {
    StepSpec step = computed();
    std::fill(step.attn.begin() + from, step.attn.begin() + to, kSkipped);
    std::fill(step.mlp.begin() + from, step.mlp.begin() + to, kSkipped);
    step.ranges = {{from, to, order}};
    return step;
  }

  // Selvaraju et al. 2024 (FORA).
  StepMaker fora(const Spelling& spelling) const {
    check_count(spelling, 1, 1);
    const int N = interval(spelling);
    return [*this, N](int s) { return s == S - 1 || s % N == 0 ? computed() : step(0); };
  }

  // Liu et al. 2025 (TaylorSeer): counted from the second step. `stack`: all blocks are one range.
  StepMaker taylor(const Spelling& spelling, bool stack) const {
    check_count(spelling, 2, 2);
    const int N = interval(spelling), order = whole(spelling, 1, "O", 0, kMaxOrder);
    return [*this, N, order, stack](int s) {
      if (s >= S - 2 || (S - 2 - s) % N == 0) return computed();
      return stack ? without(0, config.depth, order) : step(static_cast<Action>(order));
    };
  }

  // Chen et al. 2024 (Delta-DiT): outline first, then detail.
  StepMaker delta(const Spelling& spelling) const {
    check_count(spelling, 1, 3);
    const int N = interval(spelling), L = config.depth;
    const int B = spelling.args.size() > 1 ? whole(spelling, 1, "B", 0, S) : S / 2;
    const int K = spelling.args.size() > 2 ? whole(spelling, 2, "K", 1, L) : (L + 1) / 2;
    return [*this, N, B, K, L](int s) {
      if (s == S - 1 || s % N == 0) return computed();
      return s >= B ? without(L - K, L, 0) : without(0, K, 0);
    };
  }

  // Skip-DiT's cache: the stream before its last B blocks is kept, whose long skips are computed anew.
  // Counted from the first step; near the image, and from then on, nothing is kept.
  StepMaker skip(const Spelling& spelling) const {
    check_count(spelling, 1, 2);
    constexpr double kNearImage = 20.0 / kNumTrainTimesteps;
    const int N = interval(spelling), L = config.depth, most = (L - 1) / 2;
    DYDIT_USAGE_CHECK(most >= 1, "policy {}: {} blocks leave none between the first and the last",
                      quote(spelling.text), L);
    const int B = spelling.args.size() > 1 ? whole(spelling, 1, "B", 1, most) : std::min(4, most);
    std::vector<uint8_t> full(S);
    int count = 0;
    for (int s = S - 1; s >= 0; --s) {
      full[s] = count % N == 0;
      count = noise_share(config.objective, timesteps[s]) <= kNearImage ? 0 : count + 1;
    }
    return [*this, full, B, L](int s) {
      if (full[s]) return computed();
      StepSpec step = without(B, L - B, 0);
      step.ranges[0].absolute = true;
      return step;
    };
  }

  // Ma et al. 2024 (learning to cache): what its training saved.
  StepMaker l2c(const std::string& policy) const;
};

// The (2L) values of each step's router, attention and MLP of block l at 2l and 2l + 1.
std::vector<std::vector<float>> read_routers(const std::string& path, int S, int L) {
  const TorchCheckpoint file = read_torch_checkpoint(path);
  const auto set = std::find_if(file.sets.begin(), file.sets.end(),
                                [](const TorchWeights& weights) { return weights.key == "routers"; });
  DYDIT_CHECK(set != file.sets.end(), "{}: holds no `routers`; a file of L2C's training is wanted", path);
  DYDIT_CHECK(set->fault.empty(), "{}", set->fault);
  DYDIT_CHECK(static_cast<int>(set->tensors.size()) == S,
              "{}: holds routers of {} steps, the run has {}; take as many with --steps", path,
              set->tensors.size(), S);
  std::vector<std::vector<float>> routers;
  for (int s = 0; s < S; ++s) {
    const std::string key = fmt::format("{}.prob", s);
    const auto found = set->tensors.find(key);
    DYDIT_CHECK(found != set->tensors.end(), "{}: routers have no {}; 0.prob to {}.prob are wanted", path,
                key, S - 1);
    DYDIT_CHECK(found->second.shape == std::vector<int64_t>{2 * L},
                "{}: router {} has shape {}, but {} blocks take ({}); is it of another model?", path, key,
                shape_text(found->second.shape), L, 2 * L);
    const at::Tensor values = to_tensor(found->second, file.file).to(at::kFloat).contiguous();
    routers.emplace_back(values.data_ptr<float>(), values.data_ptr<float>() + 2 * L);
  }
  return routers;
}

StepMaker Maker::l2c(const std::string& policy) const {
  std::string path = policy.substr(std::min(policy.size(), std::string_view("l2c:").size()));
  double theta = kTheta;
  const size_t comma = path.rfind(',');
  if (comma != path.npos) {  // a path may hold one
    if (const auto number = parse_number<double>(std::string_view(path).substr(comma + 1))) {
      theta = *number;
      path.resize(comma);
    }
  }
  DYDIT_USAGE_CHECK(!path.empty(), "policy {} names no file; l2c:FILE[,THETA] is wanted", quote(policy));
  DYDIT_USAGE_CHECK(theta >= 0 && theta < 1, "policy {}: THETA is {}; a number from 0 to below 1 is wanted",
                    quote(policy), theta);
  DYDIT_USAGE_CHECK(S % 2 == 0, "policy {} takes an even number of steps, the run has {}", quote(policy), S);
  return [*this, theta, routers = read_routers(path, S, config.depth)](int s) {
    StepSpec step = computed();
    if (s % 2 == 1) return step;
    const auto action = [&](int branch) -> Action {
      const float probability = 1 / (1 + std::exp(-routers[s][branch]));
      return probability > static_cast<float>(theta) ? kCompute : 0;
    };
    for (int l = 0; l < config.depth; ++l) {
      step.attn[l] = action(2 * l);
      step.mlp[l] = action(2 * l + 1);
    }
    return step;
  };
}

StepMaker maker_of(const Spelling& spelling, const Maker& make) {
  switch (spelling.policy) {
    case Policy::None:
      check_count(spelling, 0, 0);
      return [make](int) { return make.computed(); };
    case Policy::Fora:
      return make.fora(spelling);
    case Policy::Stack:
      return make.taylor(spelling, /*stack=*/true);
    case Policy::Delta:
      return make.delta(spelling);
    case Policy::L2c:
      return make.l2c(spelling.text);
    case Policy::Skip:
      return make.skip(spelling);
    default:
      return make.taylor(spelling, /*stack=*/false);
  }
}

Forecast forecast_of(Policy policy) {
  if (policy == Policy::Lagrange || policy == Policy::Stack) return {ForecastKind::Lagrange};
  if (policy == Policy::Chebyshev) return {ForecastKind::Chebyshev};
  return {ForecastKind::Taylor};
}

void compute_all(StepSpec& step) {
  std::fill(step.attn.begin(), step.attn.end(), kCompute);
  std::fill(step.mlp.begin(), step.mlp.end(), kCompute);
  step.ranges.clear();
}

// In continuous time thousandths of the noise share.
double timestep_of(const Objective& objective, double timestep) {
  return objective.continuous() ? noise_share(objective, timestep) * kNumTrainTimesteps : timestep;
}

}  // namespace

PlanSpec policy_plan(const std::string& policy, const DiTConfig& config, std::span<const double> timesteps) {
  const Spelling spelling = parse_spelling(policy);
  const int S = static_cast<int>(timesteps.size());
  const StepMaker make = maker_of(spelling, {config, timesteps});
  PlanSpec spec{.name = printable(policy), .forecast = forecast_of(spelling.policy)};
  for (int s = 0; s < S; ++s) {
    spec.steps.push_back(make(s));
    spec.steps.back().timestep = timesteps[s];
  }
  return spec;
}

void apply_levels(const LevelSchedule& levels, const DiTConfig& config, PlanSpec& spec) {
  if (levels.is_default()) return;
  const std::vector<int>& said = levels.from.empty() ? levels.steps : levels.from;
  const bool by_steps = levels.from.empty();
  const int S = static_cast<int>(spec.steps.size()), most = by_steps ? S : kNumTrainTimesteps - 1;
  DYDIT_USAGE_CHECK(config.levels() > 1,
                    "levels of patch sizes: the model has one; train adds more (--level-from)");
  DYDIT_USAGE_CHECK(static_cast<int>(said.size()) < config.levels(),
                    "{} levels of larger patches: the model has {}", said.size(), config.levels() - 1);
  for (size_t i = 0; i < said.size(); ++i) {
    DYDIT_USAGE_CHECK(said[i] >= 0 && said[i] <= most, "level {}: {} is {}; 0 to {} is wanted", i + 1,
                      by_steps ? "its number of steps" : "where it begins", said[i], most);
    DYDIT_USAGE_CHECK(i == 0 || (by_steps ? said[i] <= said[i - 1] : said[i] >= said[i - 1]),
                      "level {}: {} after {}; the largest patches are of the noisiest steps", i + 1, said[i],
                      said[i - 1]);
  }
  for (int s = 0; s < S; ++s) {
    StepSpec& step = spec.steps[s];
    const double t = timestep_of(config.objective, step.timestep);
    step.level = static_cast<int>(std::count_if(
        said.begin(), said.end(), [&](int value) { return by_steps ? s >= S - value : t >= value; }));
  }
  for (int s = 0; s + 1 < S; ++s) {
    if (spec.steps[s].level != spec.steps[s + 1].level) compute_all(spec.steps[s]);
  }
}

void apply_guide(const GuideOptions& guide, const DiTConfig& config, float scale, PlanSpec& spec) {
  constexpr float kWeakScales = 2.5f;  // FlexiDiT: (1 - s of the null class) / (1 - s of the weak prediction)
  DYDIT_USAGE_CHECK(!guide.weak || config.levels() > 1,
                    "weak guidance: the model has one patch size, and a larger one guides");
  DYDIT_USAGE_CHECK(guide.to >= 0 && guide.to <= guide.from && guide.from < kNumTrainTimesteps,
                    "guidance from t = {} to {}: it begins at the larger t; both are 0 to {}", guide.from,
                    guide.to, kNumTrainTimesteps - 1);
  DYDIT_USAGE_CHECK(guide.every >= 1, "guidance every {} full steps: a whole number from 1 is wanted",
                    guide.every);
  const bool keeps = !std::all_of(spec.steps.begin(), spec.steps.end(), std::mem_fn(&StepSpec::computes_all));
  bool was_off = false;
  int full =
      0;  // since the first step, or since the patches changed: of their difference nothing is kept then
  RowPatches patches;
  for (auto step = spec.steps.rbegin(); step != spec.steps.rend(); ++step) {
    const double t = timestep_of(config.objective, step->timestep);
    // The first step of a run in continuous time is all noise.
    if (std::min<double>(t, kNumTrainTimesteps - 1) > guide.from || t < guide.to) {
      step->guide = GuideKind::Off;
      patches.change(*step, /*guided=*/true);
      was_off = true;
      continue;
    }
    if (was_off) {  // what was kept has the conditional rows alone
      compute_all(*step);
      step->restart = keeps;
      was_off = false;
    }
    if (step != spec.steps.rbegin() && std::prev(step)->level != step->level) full = 0;
    const bool weak = guide.weak && step->level < config.levels() - 1;
    if (weak) step->scale = 1 + (scale - 1) / kWeakScales;
    full += step->computes_all();
    const bool pays = step->computes_all() && (full <= 2 || full % guide.every == 0);
    if (guide.every == 1 || pays) {
      if (weak) step->guide = GuideKind::Weak;
      if (patches.change(*step, /*guided=*/true)) compute_all(*step);
      continue;
    }
    step->guide = GuideKind::Forecast;
    step->guide_order = 1;
    patches.change(*step, /*guided=*/true);
  }
}

}  // namespace dydit
