// The forward of model/dit.cpp with what is off left out. Read forward_pass() first.
#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

#include "dydit/engine/cpu/cpu_engine.h"

namespace dydit::cpu {
namespace {

constexpr int kNormRows = 16;

int whole_quads(int inputs) { return ceil_div(inputs, kQuad) * kQuad; }

}  // namespace

// One screen: some samples through all blocks.
void CpuEngine::forward_pass(const Pass& pass, const float* x, float* out) const {
  pass.w.kept.assign(static_cast<size_t>(pass.samples()) * L_, pass.N);
  pass.w.cache.begin();
  timed(pass.w, L_, Operator::Embed, [&] { embed(pass, x); });
  for (int l = 0; l < L_; ++l) {
    keep_ranges(pass, l);
    if (const RangePlan* range = pass.plan.skipped_from(l)) {
      if (range->absolute) {  // it is all that the stream will be
        add_forecasts(pass, l);
        std::fill_n(pass.w.x.as<float>(), int64_t{pass.samples()} * pass.T * row_, 0.0f);
      }
      pass.w.cache.forecast_range(static_cast<int>(range - pass.plan.ranges.data()));
      l = range->to - 1;
      continue;
    }
    if (config_.join_source(l) >= 0) join(pass, l);
    // Who goes through the block; or, before the MLP, who enters that.
    const bool whole_block = config_.token_scope == TokenScope::Block && pass.plan.routes_at(config_, l);
    int tokens = pass.samples() * pass.T;
    if (whole_block) {
      add_forecasts(pass, l);
      tokens = route(pass, l);
    }
    if (pass.plan.computes(l, Branch::Attention)) {
      add_forecasts(pass, l);
      attention_half(pass, l, tokens);
    } else {
      pass.w.cache.forecast(l, Branch::Attention);
    }
    if (pass.plan.computes(l, Branch::Mlp)) {
      add_forecasts(pass, l);
      if (!whole_block) tokens = route(pass, l);
      mlp_half(pass, l, tokens);
    } else {
      pass.w.cache.forecast(l, Branch::Mlp);
    }
    if (config_.join_source(L_ - 1 - l) == l) keep_output(pass, l);
  }
  keep_ranges(pass, L_);
  add_forecasts(pass, L_);
  timed(pass.w, L_, Operator::Final, [&] { final_layer(pass, out); });
}

// x += gate_msa proj(attention(modulate(norm(x)))) over the active heads, among the `rows` gathered tokens
void CpuEngine::attention_half(const Pass& pass, int index, int rows) const {
  PassMemory& w = pass.w;
  const PackedBlock& block = model_.blocks[index];
  const BlockWidth& width = pass.plan.blocks[index];
  const int* gathered = rows == pass.samples() * pass.T ? nullptr : w.gathered.data();
  void* const* const features = w.cache.features(pass, index, Branch::Attention, gathered != nullptr);
  if (rows == 0) return;
  if (gathered == nullptr) {
    w.starts.clear();
    for (int b = 0; b <= pass.samples(); ++b) w.starts.push_back(b * pass.T);
  }
  const int heads = width.active_heads();
  const int64_t modulation = int64_t{index} * 6 * C_;
  timed(w, index, Operator::Norm, [&] { norm_of_branch(pass, rows, gathered, index, Branch::Attention); });

  const int64_t qkv_row = even(heads * 3 * D_), heads_row = int64_t{heads} * block.proj.padded_in_size(),
                element = bf16_ ? 2 : 4;
  auto* qkv = w.qkv.as<std::byte>();
  auto* attended = w.heads.as<std::byte>();
  timed(w, index, Operator::Qkv, [&] {
    w.panels.clear();
    for (int h = 0, slot = 0; h < H_; ++h) {
      if (width.heads[h]) block.qkv.add_panels(h, slot++ * 3 * D_, w.panels);
    }
    multiply(w, block.qkv,
             {.a = w.rows.as<std::byte>(),
              .lda = input_row(block.qkv),
              .out = qkv,
              .ldo = qkv_row,
              .scales = w.row_scales.as<float>(),
              .scale_stride = 1},
             rows);
  });
  timed(w, index, Operator::Attention, [&] {
    auto* scratch = pass.run.scratch.as<std::byte>();
    const int tasks = pass.samples() * heads;
    const auto q_of = [&](int task) {
      return int64_t{w.starts[task / heads]} * qkv_row + task % heads * 3 * D_;
    };
    w.team.run(tasks, [&](int task, int thread) {
      const int64_t row = w.starts[task / heads], slot = task % heads;
      const int tokens = w.starts[task / heads + 1] - w.starts[task / heads];
      if (tokens == 0) return;
      const int next = task + w.team.threads();
      const std::byte* q = qkv + q_of(task) * element;
      std::byte* const out =
          attended + (row * heads_row + slot * block.proj.padded_in_size()) * (int8_ ? 1 : element);
      auto* const unrounded = pass.run.unrounded.as<float>() + thread * unrounded_floats();
      const Attention attention = {.q = q,
                                   .k = q + D_ * element,
                                   .v = q + 2 * D_ * element,
                                   .stride = qkv_row,
                                   .out = int8_ ? static_cast<void*>(unrounded) : out,
                                   .out_stride = int8_ ? even(D_) : heads_row,
                                   .N = tokens,
                                   .D = D_,
                                   .scale = 1.0f / std::sqrt(static_cast<float>(D_)),
                                   .scratch = scratch + thread * scratch_bytes(),
                                   .next = next < tasks ? q_of(next) - q_of(task) : 0};
      (bf16_ ? kernels_.attention_bf16 : kernels_.attention_float)(attention);
      if (!int8_) return;
      quantize({.x = unrounded,
                .ldx = even(D_),
                .rows = tokens,
                .size = D_,
                .factors = nullptr,
                .bytes = reinterpret_cast<uint8_t*>(out),
                .ldb = heads_row,
                .scales = w.part_scales.as<float>() + row * heads + slot,
                .scale_stride = heads});
    });
  });
  timed(w, index, Operator::Proj, [&] {
    w.panels.clear();
    block.proj.add_panels(0, 0, w.panels);
    w.segments.clear();
    for (int h = 0; h < H_; ++h) {
      if (width.heads[h]) w.segments.push_back(h * block.proj.segment_pairs());
    }
    multiply(w, block.proj,
             {.a = attended,
              .lda = heads_row,
              .segments = w.segments.data(),
              .num_segments = heads,
              .epilogue = Epilogue::Residual,
              .out = w.x.as<float>(),
              .ldo = row_,
              .rows = gathered,
              .sample_rows = pass.T,
              .gates = gates_at(pass, modulation + 2 * C_),
              .features = features,
              .feature_stride = C_,
              .scales = w.part_scales.as<float>(),
              .scale_stride = heads},
             rows);
  });
}

// Adds what was forecast since the last branch that was computed; its time is told with block `index`.
void CpuEngine::add_forecasts(const Pass& pass, int index) const {
  PassMemory& w = pass.w;
  if (!w.cache.has_forecasts()) return;
  timed(w, std::min(index, L_ - 1), Operator::Reuse,
        [&] { w.cache.add(pass, w.x.as<float>(), row_, w.team); });
}

void CpuEngine::keep_ranges(const Pass& pass, int index) const {
  PassMemory& w = pass.w;
  if (!BranchCache::keeps_at(pass.plan, index)) return;
  add_forecasts(pass, index);
  timed(w, std::min(index, L_ - 1), Operator::Reuse,
        [&] { w.cache.keep_ranges(pass, index, w.x.as<float>(), row_, w.team); });
}

// Decides which tokens enter the MLP, or the block: fills gathered, starts and kept; returns how many there
// are.
int CpuEngine::route(const Pass& pass, int index) const {
  if (!pass.routes_tokens) return pass.samples() * pass.T;
  PassMemory& w = pass.w;
  timed(w, index, Operator::Router, [&] {
    token_logits(pass, model_.blocks[index]);
    w.gathered.clear();
    w.starts.assign(1, 0);
    for (int b = 0; b < pass.samples(); ++b) {
      const std::span<const float> logits(w.logits.as<float>() + int64_t{b} * pass.T + X_, pass.N);
      const std::vector<uint8_t> on = select_tokens(logits, pass.plan.blocks[index].keep_tokens);
      for (int n = 0; n < X_; ++n) w.gathered.push_back(b * pass.T + n);  // always on
      const size_t before = w.gathered.size();
      for (int n = 0; n < pass.N; ++n) {
        if (on[n]) w.gathered.push_back(b * pass.T + X_ + n);
      }
      w.starts.push_back(static_cast<int>(w.gathered.size()));
      w.kept[static_cast<size_t>(b) * L_ + index] = static_cast<int>(w.gathered.size() - before);
      if (pass.trace) {
        const int64_t at = (int64_t{pass.rows[b]} * L_ + index) * N_;
        std::copy(logits.begin(), logits.end(), pass.trace->logits.data_ptr<float>() + at);
        std::copy(on.begin(), on.end(), pass.trace->masks.data_ptr<float>() + at);
      }
    }
  });
  return static_cast<int>(w.gathered.size());
}

// logits <- the token router on x, before norm and modulation; of all tokens, though nobody reads those in
// front of the patches
void CpuEngine::token_logits(const Pass& pass, const PackedBlock& block) const {
  PassMemory& w = pass.w;
  const int R = block.token_in.out_size(), rows = pass.samples() * pass.T, all = 0;
  const auto* x = w.x.as<float>();
  auto* logits = w.logits.as<float>();
  w.panels.clear();
  block.token_in.add_panels(0, 0, w.panels);
  w.team.run(ceil_div(rows, kRouterRows), [&](int task, int thread) {
    const int first = task * kRouterRows, count = std::min(kRouterRows, rows - first);
    float* out = pass.run.router.as<float>() + thread * router_floats();
    for (const std::vector<Panel>* panels : {&w.panels.whole, &w.panels.narrow}) {
      kernels_.gemm_float({.a = x + int64_t{first} * row_,
                           .lda = row_,
                           .row_begin = 0,
                           .row_end = count,
                           .panels = panels->data(),
                           .num_panels = static_cast<int>(panels->size()),
                           .narrow = panels == &w.panels.narrow,
                           .segments = &all,
                           .num_segments = 1,
                           .segment_pairs = block.token_in.segment_pairs(),
                           .epilogue = Epilogue::Relu,
                           .out = out,
                           .ldo = R});
    }
    const float* weights = block.token_out.data();  // then the bias
    for (int i = 0; i < count; ++i) logits[first + i] = kernels_.dot(out + i * R, weights, R) + weights[R];
  });
}

// x += gate_mlp fc2(gelu(fc1(modulate(norm(x))))) over the active groups, for the `tokens` gathered rows
void CpuEngine::mlp_half(const Pass& pass, int index, int tokens) const {
  PassMemory& w = pass.w;
  const PackedBlock& block = model_.blocks[index];
  const BlockWidth& width = pass.plan.blocks[index];
  const int* gathered = tokens == pass.samples() * pass.T ? nullptr : w.gathered.data();
  void* const* const features = w.cache.features(pass, index, Branch::Mlp, gathered != nullptr);
  if (tokens == 0) return;
  const int groups = width.active_groups(), group = block.fc2.padded_in_size();
  const int64_t modulation = int64_t{index} * 6 * C_ + 3 * C_, hidden_row = int64_t{groups} * group;
  timed(w, index, Operator::Norm, [&] { norm_of_branch(pass, tokens, gathered, index, Branch::Mlp); });
  auto* hidden = w.hidden.as<std::byte>();
  timed(w, index, Operator::Fc1, [&] {
    w.panels.clear();
    for (int g = 0, slot = 0; g < H_; ++g) {
      if (width.groups[g]) block.fc1.add_panels(g, int8_ ? 0 : slot++ * group, w.panels);
    }
    if (int8_) return int8_hidden(pass, block.fc1, groups, tokens);
    multiply(w, block.fc1,
             {.a = w.rows.as<std::byte>(), .lda = row_, .epilogue = gelu_, .out = hidden, .ldo = hidden_row},
             tokens);
  });
  timed(w, index, Operator::Fc2, [&] {
    w.panels.clear();
    block.fc2.add_panels(0, 0, w.panels);
    w.segments.clear();
    for (int g = 0; g < H_; ++g) {
      if (width.groups[g]) w.segments.push_back(g * block.fc2.segment_pairs());
    }
    multiply(w, block.fc2,
             {.a = hidden,
              .lda = hidden_row,
              .segments = w.segments.data(),
              .num_segments = groups,
              .epilogue = Epilogue::Residual,
              .out = w.x.as<float>(),
              .ldo = row_,
              .rows = gathered,
              .sample_rows = pass.T,
              .gates = gates_at(pass, modulation + 2 * C_),
              .features = features,
              .feature_stride = C_,
              .scales = w.part_scales.as<float>(),
              .scale_stride = groups},
             tokens);
  });
}

// w.hidden <- gelu(fc1) in 8 bits, of `rows` rows: a group of some rows at a time, whose largest value must
// be known before it is rounded.
void CpuEngine::int8_hidden(const Pass& pass, const PackedLinear& weights, int groups, int rows) const {
  PassMemory& w = pass.w;
  const int size = weights.out_size(), stride = even(size), panels = weights.segment_panels(), all = 0;
  const int64_t hidden_row = int64_t{groups} * whole_quads(size);
  w.team.run(ceil_div(rows, kGroupRows) * groups, [&](int task, int thread) {
    const int first = task / groups * kGroupRows, slot = task % groups,
              count = std::min(kGroupRows, rows - first);
    auto* const unrounded = pass.run.unrounded.as<float>() + thread * unrounded_floats();
    const Gemm gemm = {.a = w.rows.as<uint8_t>() + first * input_row(weights),
                       .lda = input_row(weights),
                       .row_begin = 0,
                       .row_end = count,
                       .panels = w.panels.whole.data() + slot * panels,
                       .num_panels = panels,
                       .segments = &all,
                       .num_segments = 1,
                       .segment_pairs = weights.segment_pairs(),
                       .epilogue = gelu_,
                       .out = unrounded,
                       .ldo = stride,
                       .scales = w.row_scales.as<float>() + first,
                       .scale_stride = 1};
    gemm_of(weights)(gemm);
    quantize({.x = unrounded,
              .ldx = stride,
              .rows = count,
              .size = size,
              .factors = nullptr,
              .bytes = w.hidden.as<uint8_t>() + first * hidden_row + int64_t{slot} * whole_quads(size),
              .ldb = hidden_row,
              .scales = w.part_scales.as<float>() + int64_t{first} * groups + slot,
              .scale_stride = groups});
  });
}

// w.rows <- modulate(norm(x)) of `rows` rows, those of `gathered` (null: the first), in the type that `next`
// takes them in; shift and scale lie at `shift` and C further in the modulation.
void CpuEngine::norm(const Pass& pass, int rows, const int* gathered, int64_t shift, double eps,
                     const PackedLinear& next) const {
  const auto epsilon = static_cast<float>(eps);
  const auto* x = pass.w.x.as<float>();
  const int64_t to_row = input_row(next);
  pass.w.team.run(ceil_div(rows, kNormRows), [&](int task, int thread) {
    for (int64_t i = task * kNormRows; i < std::min(rows, (task + 1) * kNormRows); ++i) {
      const int64_t row = gathered ? gathered[i] : i;
      const float *from = x + row * row_, *modulation = pass.modulation[pass.rows[row / pass.T]] + shift;
      if (next.int8()) {
        auto* const unrounded = pass.run.unrounded.as<float>() + thread * unrounded_floats();
        kernels_.norm_float(unrounded, from, modulation, modulation + C_, C_, epsilon);
        int8_->quantize_float({.x = unrounded,
                               .ldx = row_,
                               .rows = 1,
                               .size = C_,
                               .factors = next.factors(),
                               .bytes = pass.w.rows.as<uint8_t>() + i * to_row,
                               .ldb = to_row,
                               .scales = pass.w.row_scales.as<float>() + i,
                               .scale_stride = 1});
      } else if (next.bf16_activations()) {
        // The padding may hold a part of the final layer's float32 rows: anything, NaN included.
        Bf16* to = pass.w.rows.as<Bf16>() + i * to_row;
        to[row_ - 1] = {};
        kernels_.norm_bf16(to, from, modulation, modulation + C_, C_, epsilon);
      } else {
        float* to = pass.w.rows.as<float>() + i * to_row;
        to[row_ - 1] = 0;
        kernels_.norm_float(to, from, modulation, modulation + C_, C_, epsilon);
      }
    }
  });
}

// Before a branch of block `index`.
void CpuEngine::norm_of_branch(const Pass& pass, int rows, const int* gathered, int index,
                               Branch which) const {
  const bool attends = which == Branch::Attention;
  const BlockConfig& block = config_.block(index);
  const int64_t part = int64_t{index} * 6 + (attends ? 0 : 3);
  norm(pass, rows, gathered, part * C_, attends ? block.attn_norm_eps : block.mlp_norm_eps,
       attends ? model_.blocks[index].qkv : model_.blocks[index].fc1);
  PassMemory& w = pass.w;
  if (w.largest.empty()) return;
  float* largest = w.largest.data() + (int64_t{index} * 2 + (attends ? 0 : 1)) * C_;
  for (int row = 0; row < rows; ++row) {
    const float* values = w.rows.as<float>() + int64_t{row} * row_;
    for (int c = 0; c < C_; ++c) largest[c] = std::max(largest[c], std::abs(values[c]));
  }
}

const float* const* CpuEngine::gates_at(const Pass& pass, int64_t offset) const {
  pass.w.gates.resize(pass.samples());
  for (int b = 0; b < pass.samples(); ++b) pass.w.gates[b] = pass.modulation[pass.rows[b]] + offset;
  return pass.w.gates.data();
}

}  // namespace dydit::cpu
