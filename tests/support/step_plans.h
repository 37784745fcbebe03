// The recorded step plans of ../shared/golden/step_plan.
#pragma once

#include "dydit/model/config.h"

namespace dydit::test {

/// Of the model that they are of.
inline DiTConfig recorded_plan_config() {
  return {.input_size = 16,
          .patch_size = 2,
          .in_channels = 4,
          .hidden_size = 96,
          .depth = 2,
          .num_heads = 3,
          .mlp_hidden = 384,
          .num_classes = 10,
          .width_routers = true,
          .token_routers = true};
}

}  // namespace dydit::test
