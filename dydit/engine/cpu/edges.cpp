// What no router decides about: the embedding, long skips, the final layer and its convolution. Their place
// in the forward is in forward_pass().
#include <algorithm>

#include <ATen/ATen.h>

#include "dydit/engine/cpu/cpu_engine.h"

namespace dydit::cpu {
namespace {

constexpr int kJoinRows = 16;  // of a task

}  // namespace

// x <- [label, time,] patches through the patch embedding, + pos_embed
void CpuEngine::embed(const Pass& pass, const float* x) const {
  PassMemory& w = pass.w;
  const int level = pass.plan.level, g = config_.grid(level), p = config_.patch(level),
            channels = config_.in_channels, side = config_.input_size;
  const int of_patch = config_.patch_values(level), values = even(of_patch);
  const PackedLevel& own = model_.levels[level];
  auto* patches = w.patches.as<float>();
  auto* tokens = w.x.as<float>();
  const float* positions = own.pos_embed.data_ptr<float>();
  w.team.run(pass.samples() * g, [&](int task, int) {
    for (int column = 0; column < g; ++column) {
      const int64_t token = int64_t{task} * g + column;
      float* patch = patches + token * values;
      for (int c = 0; c < channels; ++c) {
        const float* from =
            x + ((int64_t{pass.rows[task / g]} * channels + c) * side + task % g * p) * side + column * p;
        for (int i = 0; i < p; ++i) {
          for (int j = 0; j < p; ++j) patch[(c * p + i) * p + j] = from[i * side + j];
        }
      }
      if (values != of_patch) patch[values - 1] = 0;  // the final layer's rows lay here
      const int64_t sample = token / pass.N, position = X_ + token % pass.N;
      std::copy_n(positions + position * C_, C_, tokens + (sample * pass.T + position) * row_);
    }
  });
  for (int b = 0; X_ > 0 && b < pass.samples(); ++b) {
    const auto add = [&](int token, const float* value) {
      float* const row = tokens + (int64_t{b} * pass.T + token) * row_;
      for (int c = 0; c < C_; ++c) row[c] = value[c] + positions[int64_t{token} * C_ + c];
    };
    if (X_ > 1) add(0, model_.labels.data_ptr<float>() + pass.row(b).label * C_);
    add(X_ - 1, pass.times[pass.rows[b]]);
  }
  w.panels.clear();
  own.patch.add_panels(0, 0, w.panels);
  multiply(w, own.patch,
           {.a = patches,
            .lda = values,
            .epilogue = Epilogue::Residual,
            .out = tokens,
            .ldo = row_,
            .rows = X_ > 0 ? w.patch_rows.data() : nullptr},
           pass.samples() * pass.N);
}

// x <- the layer that joins it with the output of an earlier block: of [x, that], normed or as they are
void CpuEngine::join(const Pass& pass, int index) const {
  add_forecasts(pass, index);
  PassMemory& w = pass.w;
  const PackedBlock& block = model_.blocks[index];
  const int rows = pass.samples() * pass.T, source = config_.join_source(index);
  const int64_t joined_row = 2 * row_;
  const auto epsilon = static_cast<float>(config_.block(index).attn_norm_eps);
  const float* const outputs = w.outputs.as<float>() + int64_t{source} * rows * C_;
  timed(w, index, Operator::Join, [&] {
    w.team.run(ceil_div(rows, kJoinRows), [&](int task, int) {
      for (int64_t row = task * kJoinRows; row < std::min(rows, (task + 1) * kJoinRows); ++row) {
        float* const joined = w.joined.as<float>() + row * joined_row;
        std::copy_n(w.x.as<float>() + row * row_, C_, joined);
        std::copy_n(outputs + row * C_, C_, joined + C_);
        if (block.join_scale.empty()) continue;
        kernels_.norm_float(joined, joined, block.join_shift.data(), block.join_scale.data(), 2 * C_,
                            epsilon);
      }
    });
    w.panels.clear();
    block.join.add_panels(0, 0, w.panels);
    multiply(w, block.join,
             {.a = w.joined.as<float>(),
              .lda = joined_row,
              .epilogue = config_.join == Join::Residual ? Epilogue::Residual : Epilogue::Store,
              .out = w.x.as<float>(),
              .ldo = row_},
             rows);
  });
}

// For the block that is joined with this one.
void CpuEngine::keep_output(const Pass& pass, int index) const {
  add_forecasts(pass, index);
  PassMemory& w = pass.w;
  const int rows = pass.samples() * pass.T;
  timed(w, index, Operator::Join, [&] {
    float* const outputs = w.outputs.as<float>() + int64_t{index} * rows * C_;
    w.team.run(ceil_div(rows, kJoinRows), [&](int task, int) {
      for (int64_t row = task * kJoinRows; row < std::min(rows, (task + 1) * kJoinRows); ++row)
        std::copy_n(w.x.as<float>() + row * row_, C_, outputs + row * C_);
    });
  });
}

// out <- unpatchified linear(modulate(norm(x))): 'nhwpqc->nchpwq'
void CpuEngine::final_layer(const Pass& pass, float* out) const {
  PassMemory& w = pass.w;
  const int level = pass.plan.level, g = config_.grid(level), p = config_.patch(level),
            channels = config_.out_channels(), side = config_.input_size;
  const PackedLinear& last = model_.levels[level].final;
  const int values = p * p * channels, rows = pass.samples() * pass.N;
  norm(pass, rows, X_ > 0 ? w.patch_rows.data() : nullptr, int64_t{L_} * 6 * C_, config_.final_norm_eps,
       last);
  float* const image = config_.output_conv ? w.joined.as<float>() : out;
  auto* patches = w.patches.as<float>();
  w.panels.clear();
  last.add_panels(0, 0, w.panels);
  multiply(w, last, {.a = w.rows.as<float>(), .lda = row_, .out = patches, .ldo = values}, rows);
  w.team.run(pass.samples() * g, [&](int task, int) {
    for (int column = 0; column < g; ++column) {
      const float* patch = patches + (int64_t{task} * g + column) * values;
      for (int c = 0; c < channels; ++c) {
        const int64_t sample = config_.output_conv ? task / g : pass.rows[task / g];
        float* to = image + ((sample * channels + c) * side + task % g * p) * side + column * p;
        for (int i = 0; i < p; ++i) {
          for (int j = 0; j < p; ++j) to[i * side + j] = patch[(i * p + j) * channels + c];
        }
      }
    }
  });
  if (config_.output_conv) convolve(pass, image, out);
}

// out <- images (samples, channels, side, side) through a 3 x 3 convolution, zeros around them
void CpuEngine::convolve(const Pass& pass, const float* images, float* out) const {
  const int channels = config_.out_channels(), side = config_.input_size;
  const int64_t plane = int64_t{side} * side;
  pass.w.team.run(pass.samples() * channels, [&](int task, int) {
    const int sample = task / channels, to = task % channels;
    float* const result = out + (int64_t{pass.rows[sample]} * channels + to) * plane;
    std::fill_n(result, plane, model_.conv_bias[to]);
    for (int tap = 0; tap < channels * 9; ++tap) {
      const int from = tap / 9, dy = tap % 9 / 3 - 1, dx = tap % 3 - 1;
      const float weight = model_.conv_weight[static_cast<size_t>(to) * channels * 9 + tap];
      const float* const image = images + (int64_t{sample} * channels + from) * plane;
      for (int y = std::max(0, -dy); y < side - std::max(0, dy); ++y) {
        for (int x = std::max(0, -dx); x < side - std::max(0, dx); ++x)
          result[y * side + x] += weight * image[(y + dy) * side + x + dx];
      }
    }
  });
}

}  // namespace dydit::cpu
