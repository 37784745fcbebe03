// How many timesteps a diffusion was trained with: t is 0..999, 999 nearly noise.
#pragma once

namespace dydit {

inline constexpr int kNumTrainTimesteps = 1000;

}  // namespace dydit
