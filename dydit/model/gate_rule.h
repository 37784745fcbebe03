// The rule by which routers decide what is on at inference, and the counts that the capacity rule keeps.
#pragma once

#include <vector>

#include "dydit/base/enum_names.h"
#include "dydit/base/timesteps.h"

namespace dydit {

enum class GateRule {
  Threshold,  // a part is on iff its logit is above 0
  Capacity,   // the k largest logits are on
};
inline constexpr EnumNames<GateRule, 2> kGateRuleNames = {
    "gate rule", {{"threshold", GateRule::Threshold}, {"capacity", GateRule::Capacity}}};

inline constexpr int kQuarters =
    4;  // of the timesteps; the capacity rule's regions, where nobody chooses others
inline constexpr int kMostRegions = 50;

/// Whether t may be cut into so many equal regions.
constexpr bool is_regions(int regions) {
  return regions >= 1 && regions <= kMostRegions && kNumTrainTimesteps % regions == 0;
}

/// The capacity rule's k: how many heads, channel groups and tokens are on in each block and region of t, of
/// which there are as many as a list is long, all equal. The always-on head and group are counted.
struct KeepCounts {
  using PerRegion = std::vector<int>;
  std::vector<PerRegion> heads, groups,
      tokens;  // L of each level in turn; heads and groups empty without TDW, tokens without SDT

  int regions() const {
    const auto& kept = heads.empty() ? tokens : heads;
    return kept.empty() ? kQuarters : static_cast<int>(kept[0].size());
  }
  bool operator==(const KeepCounts&) const = default;
};

}  // namespace dydit
