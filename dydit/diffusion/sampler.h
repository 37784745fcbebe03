// The sampling loop: from noise at the last kept timestep to the image, for any denoiser.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/diffusion/solver.h"

namespace dydit {

/// The timesteps of a run of `steps` (ascending) and how they were chosen, for the log.
struct Spacing {
  std::vector<int> timesteps;
  std::string description;
};

/// DDPM: even sections. DDIM: the fixed stride where one gives exactly `steps`, else even sections.
/// DPM-Solver++: linspace_timesteps.
Spacing choose_timesteps(SamplerKind kind, int steps);

/// Model output (rows, channels or 2*channels, side, side) for state x (rows, channels, side, side) at kept
/// step `step` (an index into the tables, not a timestep).
using Denoiser = std::function<at::Tensor(const at::Tensor& x, int step)>;

/// Fills `noise` (rows, channels, side, side), contiguous, with the standard normals of the loop's `draw`-th
/// step, counted from 0 at the largest timestep. Not called for a step that adds no noise.
using NoiseSource = std::function<void(at::Tensor& noise, int draw)>;

/// Moves x one step: x (rows, channels, side, side) and `output` contiguous float32; `noise` may be undefined
/// where the step is not noisy. A second half of output's channels is the learned variance. `x0`, of x's
/// shape, takes the predicted image; undefined: not wanted. Where the step's slope is not 0 it holds what the
/// step before left there.
void reverse_step(const SolverStep& step, at::Tensor& x, const at::Tensor& output, const at::Tensor& noise,
                  const at::Tensor& x0 = {});

/// Runs all steps on x in place. `between(done, x0)` is called after each step and may throw to stop; x0 is
/// the image predicted in that step.
void sample(const DiffusionTables& tables, const SamplerOptions& options, at::Tensor& x,
            const Denoiser& denoise, const NoiseSource& draw_noise,
            const std::function<void(int done, const at::Tensor& x0)>& between = nullptr);

}  // namespace dydit
