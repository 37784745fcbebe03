// What engines obey, made of what is written: read apply_spec() last.
#include "dydit/plan/run_plan.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>
#include <utility>

#include "dydit/model/macs.h"

namespace dydit {
namespace {

// One feature that steps keep and forecast: a branch, the effect of a range, or the guidance difference.
struct Feature {
  struct Entry {
    int step, rows;  // computed at this step, for so many rows of a sample
    int last_read = -1;
    int* store;  // where its slot is written
  };
  std::vector<Entry> entries = {};
  size_t begin = 0;  // of those since the last restart
  std::vector<std::pair<size_t, Term*>> reads = {};

  void keep(int step, int rows, int& store) { entries.push_back({step, rows, -1, &store}); }

  // The terms of a forecast at `step` for `rows` rows: of the newest entries that have as many.
  void forecast(const Forecast& kind, int step, int rows, int order, std::vector<Term>& terms) {
    std::vector<int> anchors;
    for (size_t i = entries.size(); i > begin && entries[i - 1].rows >= rows; --i)
      anchors.push_back(entries[i - 1].step);
    const std::vector<double> weights = forecast_weights(kind, anchors, step, order);
    terms.resize(weights.size());
    for (size_t j = 0; j < weights.size(); ++j) {
      const size_t entry = entries.size() - 1 - j;
      terms[j] = {.step = entries[entry].step, .weight = static_cast<float>(weights[j])};
      entries[entry].last_read = step;
      reads.emplace_back(entry, &terms[j]);
    }
  }
};

// Gives each entry that is read a slot from its step to its last read; returns how many slots there are.
int assign_slots(std::span<Feature* const> features) {
  struct Use {
    Feature* feature;
    size_t entry;
    int step, last_read;
  };
  std::vector<Use> uses;
  for (Feature* feature : features) {
    for (size_t i = 0; i < feature->entries.size(); ++i) {
      const Feature::Entry& entry = feature->entries[i];
      if (entry.last_read >= 0) uses.push_back({feature, i, entry.step, entry.last_read});
    }
  }
  // Steps fall; a slot is free below the last step that reads it.
  std::stable_sort(uses.begin(), uses.end(), [](const Use& a, const Use& b) { return a.step > b.step; });
  std::vector<int> busy_until;
  std::map<std::pair<Feature*, size_t>, int> slots;
  for (const Use& use : uses) {
    size_t slot = 0;
    while (slot < busy_until.size() && busy_until[slot] <= use.step) ++slot;
    if (slot == busy_until.size()) busy_until.push_back(0);
    busy_until[slot] = use.last_read;
    *use.feature->entries[use.entry].store = static_cast<int>(slot);
    slots[{use.feature, use.entry}] = static_cast<int>(slot);
  }
  for (Feature* feature : features) {
    for (const auto& [entry, term] : feature->reads) term->slot = slots.at({feature, entry});
  }
  return static_cast<int>(busy_until.size());
}

bool overlap(const RangeSkip& a, const RangeSkip& b) { return a.from < b.to && b.from < a.to; }
bool same(const RangeSkip& a, const RangeSkip& b) {
  return a.from == b.from && a.to == b.to && a.absolute == b.absolute;
}

void apply_widths(const StepSpec& spec, StepPlan& step) {
  for (size_t l = 0; l < step.blocks.size(); ++l) {
    if (!spec.heads.empty()) step.blocks[l].heads = spec.heads[l];
    if (!spec.groups.empty()) step.blocks[l].groups = spec.groups[l];
    if (!spec.tokens.empty()) step.blocks[l].keep_tokens = spec.tokens[l];
  }
}

}  // namespace

int BlockWidth::active_heads() const { return std::accumulate(heads.begin(), heads.end(), 0); }
int BlockWidth::active_groups() const { return std::accumulate(groups.begin(), groups.end(), 0); }

const RangePlan* StepPlan::skipped_from(int block) const {
  for (const RangePlan& range : ranges) {
    if (range.from == block && range.skipped()) return &range;
  }
  return nullptr;
}

bool StepPlan::same_work(const StepPlan& other) const {
  const auto same_range = [](const RangePlan& a, const RangePlan& b) {
    return a.from == b.from && a.to == b.to && a.skipped() == b.skipped() && a.absolute == b.absolute;
  };
  if (mode != other.mode || level != other.level || blocks != other.blocks ||
      ranges.size() != other.ranges.size() ||
      !std::equal(ranges.begin(), ranges.end(), other.ranges.begin(), same_range))
    return false;
  if (branches.empty() && other.branches.empty()) return true;
  for (int l = 0; l < static_cast<int>(blocks.size()); ++l) {
    for (const Branch which : {Branch::Attention, Branch::Mlp}) {
      if (computes(l, which) != other.computes(l, which)) return false;
    }
  }
  return true;
}

void apply_spec(const PlanSpec& spec, bool guided, RunPlan& plan) {
  const int S = static_cast<int>(plan.steps.size()), L = plan.config.depth;
  plan.name = spec.name;
  std::vector<RangeSkip> ranges;  // all that any step skips, by their beginning, the longer first
  for (const StepSpec& step : spec.steps) ranges.insert(ranges.end(), step.ranges.begin(), step.ranges.end());
  std::sort(ranges.begin(), ranges.end(), [](const RangeSkip& a, const RangeSkip& b) {
    return std::tuple(a.from, -a.to, a.absolute) < std::tuple(b.from, -b.to, b.absolute);
  });
  ranges.erase(std::unique(ranges.begin(), ranges.end(), same), ranges.end());

  const auto is_weak = [&](int s) { return guided && spec.steps[s].guide == GuideKind::Weak; };
  std::vector<Feature> branches(2 * L), differences(ranges.size());
  Feature guidance;
  RowPatches patches;
  for (int s = S - 1; s >= 0; --s) {
    const StepSpec& from = spec.steps[s];
    StepPlan& step = plan.steps[s];
    if (is_weak(s)) {
      plan.weak.resize(S);
      plan.weak[s] = plan.larger.back()[s];
    }
    if (from.level > 0) step = plan.larger[from.level - 1][s];
    step.index = s;
    apply_widths(from, step);
    step.guide = {guided ? from.guide : GuideKind::Full, from.scale, -1, {}};
    const int rows = plan.rows(s, guided);
    if (patches.change(from, guided) || from.restart) {
      for (Feature& feature : branches) feature.begin = feature.entries.size();
      for (Feature& feature : differences) feature.begin = feature.entries.size();
      guidance.begin = guidance.entries.size();
    }
    step.branches.resize(2 * L);
    for (int b = 0; b < 2 * L; ++b) {
      BranchPlan& branch = step.branches[b];
      branch.action = (b % 2 == 0 ? from.attn : from.mlp)[b / 2];
      if (branch.action == kCompute) {
        branches[b].keep(s, rows, branch.store);
      } else if (branch.action != kSkipped) {
        branches[b].forecast(spec.forecast, s, rows, branch.action, branch.terms);
      }
    }
    step.ranges.reserve(ranges.size());  // entries point into it
    for (size_t r = 0; r < ranges.size(); ++r) {
      const auto skip = std::find_if(from.ranges.begin(), from.ranges.end(),
                                     [&](const RangeSkip& range) { return overlap(range, ranges[r]); });
      const RangePlan range{ranges[r].from, ranges[r].to, -1, {}, ranges[r].absolute};
      if (skip == from.ranges.end()) {
        step.ranges.push_back(range);
        differences[r].keep(s, rows, step.ranges.back().store);
      } else if (same(*skip, ranges[r])) {
        step.ranges.push_back(range);
        differences[r].forecast(spec.forecast, s, rows, skip->order, step.ranges.back().terms);
      }
    }
    if (rows == 2) {
      guidance.keep(s, rows, step.guide.store);
    } else if (step.guide.kind == GuideKind::Forecast) {
      guidance.forecast(spec.forecast, s, 2, from.guide_order, step.guide.terms);
    }
  }
  std::vector<Feature*> features;
  for (Feature& feature : branches) features.push_back(&feature);
  for (Feature& feature : differences) features.push_back(&feature);
  plan.slots = assign_slots(features);
  plan.guide_slots = assign_slots(std::array{&guidance});
  for (StepPlan& step : plan.steps) {
    step.slots = plan.slots;
    std::erase_if(step.ranges, [](const RangePlan& range) { return !range.skipped() && range.store < 0; });
    plan.ranges = std::max(plan.ranges, static_cast<int>(step.ranges.size()));
    const bool plain = step.ranges.empty() &&
                       std::all_of(step.branches.begin(), step.branches.end(), [](const BranchPlan& branch) {
                         return branch.action == kCompute && branch.store < 0;
                       });
    if (plain) step.branches.clear();
    if (!is_weak(step.index)) continue;
    StepPlan& second = plan.weak[step.index];
    second.index = step.index;
    second.slots = step.slots;
    second.branches = step.branches;
    second.ranges = step.ranges;
  }
  plan.larger.clear();
}

int64_t required_macs(const DiTConfig& config, const StepPlan& step, std::span<const int> tokens) {
  const int64_t N = config.num_tokens(step.level), ada = adaLN_macs(config);  // of a branch
  const bool dynamic = step.mode == Mode::Dynamic;
  const int64_t width_router = dynamic ? width_router_macs(config) : 0;
  int64_t macs = fixed_macs(config, step.level) - config.depth * 2 * ada;
  for (int b = 0; b < config.depth; ++b) {
    const BlockWidth& width = step.blocks[b];
    if (step.computes(b, Branch::Attention) || step.computes(b, Branch::Mlp))
      macs += adapter_router_macs(config);
    if (step.branch(b, Branch::Attention).action != kSkipped) macs += join_macs(config, b);
    if (step.routes_at(config, b)) macs += token_router_macs(config, step.level);
    const int64_t kept = tokens.empty() ? (width.keep_tokens >= 0 ? width.keep_tokens : N) : tokens[b];
    const bool whole_block = config.token_scope == TokenScope::Block && step.routes_tokens(config);
    for (const Branch which : {Branch::Attention, Branch::Mlp}) {
      const Action action = step.branch(b, which).action;
      if (action == kSkipped) continue;
      if (action != kCompute) {
        macs += ada / 3;
        continue;
      }
      macs += ada + width_router;
      if (which == Branch::Attention) {
        const int64_t among = whole_block ? kept : N;
        macs += attention_macs_among(config, width.active_heads(), among) +
                adapter_attention_macs(config, width.active_heads(), among);
        continue;
      }
      macs += mlp_macs(config, width.active_groups(), kept) +
              adapter_mlp_macs(config, width.active_groups(), kept);
    }
  }
  return macs;
}

int64_t plan_macs(const RunPlan& plan, bool guided) {
  int64_t macs = 0;
  for (size_t s = 0; s < plan.steps.size(); ++s) {
    for (int row = 0; row < plan.rows(s, guided); ++row)
      macs += required_macs(plan.config, plan.of_row(s, row));
  }
  return macs;
}

}  // namespace dydit
