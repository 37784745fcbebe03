// The sampling loop as method.md has it, for any denoiser: what the pipeline's images are held against.
#pragma once

#include <functional>

#include <ATen/ATen.h>

#include "dydit/diffusion/solver.h"

namespace dydit::test {

/// Moves x one step: x and noise (rows, channels, side, side), `output` that or with twice the channels, all
/// contiguous float32; `noise` may be undefined where the step is not noisy. `x0`, of x's shape, takes the
/// predicted image; undefined: not wanted. Where the step's slope is not 0 it holds that of the step before.
inline void reverse_step(const SolverStep& step, at::Tensor& x, const at::Tensor& output,
                         const at::Tensor& noise, const at::Tensor& x0 = {}) {
  const auto size = static_cast<size_t>(x[0].numel()), output_size = static_cast<size_t>(output[0].numel());
  const auto row_of = [&](const at::Tensor& rows, int64_t row) -> std::span<float> {
    if (!rows.defined()) return {};
    return {rows[row].data_ptr<float>(), size};
  };
  for (int64_t row = 0; row < x.size(0); ++row) {
    const std::span<float> eps = row_of(output, row);
    apply_step(step, {.x = row_of(x, row),
                      .eps = eps,
                      .variance = {eps.data() + size, output_size - size},
                      .noise = row_of(noise, row),
                      .x0 = row_of(x0, row)});
  }
}

/// Runs all steps on x in place, from the last kept one down. `denoise(x, step)` is the model's output,
/// `draw_noise(noise, draw)` fills noise in the loop's `draw`-th step where one is added; `between(done, x0)`
/// is called after each step.
inline void sample(const DiffusionTables& tables, const SamplerOptions& options, at::Tensor& x,
                   const std::function<at::Tensor(const at::Tensor& x, int step)>& denoise,
                   const std::function<void(at::Tensor& noise, int draw)>& draw_noise,
                   const std::function<void(int done, const at::Tensor& x0)>& between = nullptr) {
  at::Tensor noise = at::empty_like(x), x0 = at::empty_like(x);
  const int num_steps = tables.num_steps();
  for (int draw = 0; draw < num_steps; ++draw) {
    const SolverStep step = make_solver_step(tables, options, num_steps - 1 - draw);
    const at::Tensor output = denoise(x, num_steps - 1 - draw).contiguous();
    if (step.noisy) draw_noise(noise, draw);
    reverse_step(step, x, output, noise, x0);
    if (between) between(draw + 1, x0);
  }
}

}  // namespace dydit::test
