// The rule by which routers decide what is on at inference, and the counts that the capacity rule keeps.
#pragma once

#include <array>
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

inline constexpr int kQuarters = 4;  // of the timesteps
inline constexpr int kQuarterLength = kNumTrainTimesteps / kQuarters;

/// The capacity rule's k: how many heads, channel groups and tokens are on in each block and quarter of t.
/// The always-on head and group are counted.
struct KeepCounts {
  using PerQuarter = std::array<int, kQuarters>;
  std::vector<PerQuarter> heads, groups,
      tokens;  // L of each level in turn; heads and groups empty without TDW, tokens without SDT

  bool operator==(const KeepCounts&) const = default;
};

}  // namespace dydit
