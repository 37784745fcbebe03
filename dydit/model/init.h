// Weights that do not come from a file: a DiT from scratch, and the routers that make a static DiT dynamic.
#pragma once

#include <cstdint>

#include "dydit/model/checkpoint.h"

namespace dydit {

// Everything is on when fine-tuning starts (DyDiT, section 3.4).
inline constexpr double kWidthRouterBias = 15.0;
inline constexpr double kTokenRouterBias = 35.0;

/// True for a router's weight or bias, by its name in a checkpoint.
bool is_router_parameter(const std::string& name);

/// A DiT as its authors initialise it: linears xavier-uniform with bias 0, label table and timestep MLP N(0,
/// 0.02), every adaLN and the final linear zero. A function of (config, seed).
Checkpoint init_checkpoint(const DiTConfig& config, uint64_t seed);

struct RouterInit {
  bool width = true;   // TDW
  bool tokens = true;  // SDT
  double width_bias = kWidthRouterBias;
  double token_bias = kTokenRouterBias;  // of the last layer
};

/// The checkpoint with routers added: weights xavier-uniform, biases as stated. Throws Error when it has
/// routers.
Checkpoint add_routers(const Checkpoint& checkpoint, const RouterInit& init, uint64_t seed);

/// Reorders heads and MLP channels by importance, the most important first, since the first head and the
/// first channel group are always on. Importance of a head is the sum of |weights| of its q, k, v rows and
/// proj columns, of a channel that of its fc1 row and fc2 column. The static model's output does not change.
Checkpoint reorder_by_importance(const Checkpoint& checkpoint);

}  // namespace dydit
