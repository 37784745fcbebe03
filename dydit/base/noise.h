// Counter-based noise: image i of a seed gets the same normals whatever the batch, thread or process count.
#pragma once

#include <cstdint>
#include <span>

namespace dydit {

/// Fills `out` with standard normals that depend on (seed, sample, draw) and the position alone.
/// Philox 4x32-10 keyed by `seed`, subsequence `sample`, counter `draw` * 2^32; Box-Muller in double.
/// `draw` numbers the noises of one sample: 0 the start, k the noise of the loop's k-th step. `first`, a
/// multiple of 4, is the position of out[0], so that parts of a draw can be filled apart.
void fill_normal(std::span<float> out, uint64_t seed, uint64_t sample, uint64_t draw, uint64_t first = 0);

/// A number in the open interval (0, 1) from the upper 24 of 32 random bits.
float open_uniform(uint32_t bits);

/// Fills `out` with uniform numbers in (0, 1), keyed like fill_normal.
void fill_uniform(std::span<float> out, uint64_t seed, uint64_t sample, uint64_t draw);

/// The `sample` of training's noise: position `index` (below 2^24) in the global batch of step `step`.
inline uint64_t training_sample(uint64_t step, uint64_t index) { return (step << 24) | index; }

/// What a training sample draws; the `draw` of the functions above.
enum class TrainingDraw : uint64_t {
  Flip,
  Timestep,
  LabelDropout,
  CompleteLabelDropout,
  Noise,
  Gates,
  HookWeights,  // its sample is the parameter
  TeacherLag,
  Level,
  DistillTimestep,
};

}  // namespace dydit
