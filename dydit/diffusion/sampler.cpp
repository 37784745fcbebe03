// The loop walks the kept steps from the noisiest to the image.
#include "dydit/diffusion/sampler.h"

#include <cassert>
#include <span>

#include <ATen/ops/empty_like.h>
#include <fmt/format.h>

#include "dydit/diffusion/schedule.h"

namespace dydit {
Spacing choose_timesteps(SamplerKind kind, int steps) {
  if (kind == SamplerKind::Ddim) {
    std::vector<int> timesteps = strided_timesteps(steps);
    if (!timesteps.empty()) {
      const int stride = timesteps[1];  // two or more: every stride is below 1000
      return {std::move(timesteps), fmt::format("fixed stride {}", stride)};
    }
    return {even_timesteps(steps), fmt::format("even sections (no fixed stride gives {} steps)", steps)};
  }
  if (kind == SamplerKind::Dpm) return {linspace_timesteps(steps), "linspace, 0 left out"};
  return {even_timesteps(steps), "even sections"};
}

void reverse_step(const SolverStep& step, at::Tensor& x, const at::Tensor& output, const at::Tensor& noise,
                  const at::Tensor& x0) {
  assert(x.is_contiguous() && output.is_contiguous() && output.size(0) == x.size(0));
  // Not by the strides: of a single row they may be those of a larger tensor that it was cut from.
  const auto row_size = [](const at::Tensor& rows) {
    return static_cast<size_t>(rows.size(1) * rows.size(2) * rows.size(3));
  };
  const size_t size = row_size(x), output_size = row_size(output);
  const bool learned = output_size == 2 * size;
  for (int64_t row = 0; row < x.size(0); ++row) {
    const float* out = output.data_ptr<float>() + row * output_size;
    apply_step(step,
               {.x = {x.data_ptr<float>() + row * size, size},
                .eps = {out, size},
                .variance = {out + size, learned ? size : 0},
                .noise = {noise.defined() ? noise.data_ptr<float>() + row * size : nullptr,
                          noise.defined() ? size : 0},
                .x0 = {x0.defined() ? x0.data_ptr<float>() + row * size : nullptr, x0.defined() ? size : 0}});
  }
}

void sample(const DiffusionTables& tables, const SamplerOptions& options, at::Tensor& x,
            const Denoiser& denoise, const NoiseSource& draw_noise,
            const std::function<void(int done, const at::Tensor& x0)>& between) {
  at::Tensor noise = at::empty_like(x), x0 = at::empty_like(x);
  const int num_steps = tables.num_steps();
  for (int draw = 0; draw < num_steps; ++draw) {
    const int index = num_steps - 1 - draw;
    const SolverStep step = make_solver_step(tables, options, index);
    const at::Tensor output = denoise(x, index);
    if (step.noisy) draw_noise(noise, draw);
    reverse_step(step, x, output, noise, x0);
    if (between) between(draw + 1, x0);
  }
}

}  // namespace dydit
