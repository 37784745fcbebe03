// The sampling loop: from noise at the last kept timestep to the image, for any denoiser.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/base/enum_names.h"
#include "dydit/diffusion/gaussian.h"

namespace dydit {

enum class SamplerKind { Ddpm, Ddim, Dpm };  // Dpm: DPM-Solver++(2M)
inline constexpr EnumNames<SamplerKind, 3> kSamplerNames = {
    "sampler", {{"ddpm", SamplerKind::Ddpm}, {"ddim", SamplerKind::Ddim}, {"dpm++", SamplerKind::Dpm}}};

struct SamplerOptions {
  SamplerKind kind = SamplerKind::Ddpm;
  float eta = 0;  // DDIM's share of DDPM's noise
};

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
/// at step 0, for DDIM with eta 0 and for DPM-Solver++. A second half of output's channels is the learned
/// variance. `x0`, of x's shape, takes the predicted image; undefined: not wanted. DPM-Solver++ needs it,
/// with what the step before left there.
void reverse_step(const DiffusionTables& tables, const SamplerOptions& options, int step, at::Tensor& x,
                  const at::Tensor& output, const at::Tensor& noise, const at::Tensor& x0 = {});

/// Runs all steps on x in place. `between(done, x0)` is called after each step and may throw to stop; x0 is
/// the image predicted in that step when `keep_x0`, else undefined.
void sample(const DiffusionTables& tables, const SamplerOptions& options, at::Tensor& x,
            const Denoiser& denoise, const NoiseSource& draw_noise,
            const std::function<void(int done, const at::Tensor& x0)>& between = nullptr,
            bool keep_x0 = false);

}  // namespace dydit
