// The operators of a block on LibTorch, for tensors of the CPU and of CUDA: the only place that knows where
// the two differ. Letters as in model/config.h; M is rows of a product, k the tokens of a sample that take
// part.
#pragma once

#include <functional>

#include <ATen/core/Tensor.h>

#include "dydit/model/config.h"

namespace dydit::aten {

/// layer_norm(x, eps) scale1 + shift: x (B, k, C) float32, shift and scale1, which holds the 1 already,
/// (B, 1, C) or (1, 1, C) float32 -> (B, k, C) in `dtype`, rounded once.
at::Tensor norm_modulate(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale1,
                         at::ScalarType dtype, double eps);

/// x (B, k, in) times `weight` (in, out) and bias (out), which may be undefined -> (B, k, out), contiguous.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);
/// gelu(linear(x, weight, bias)).
at::Tensor linear_gelu(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, GeluForm form);

/// softmax(q k^T / sqrt(D)) v of n heads: qkv (B, k, n, 3, D) -> (B, k, n D). `on` (B, k): the tokens that
/// are attended to; undefined: all.
at::Tensor attention(const at::Tensor& qkv, const at::Tensor& on = {});

/// x += gate y in float32: gate (B, 1, C), undefined: 1; y (B, k, C).
void add_gated(at::Tensor& x, const at::Tensor& gate, const at::Tensor& y);

/// Tokens of all samples that take part in something.
struct Chosen {
  at::Tensor rows;  // (B k) of the B T rows of tokens, each at most once; undefined: all of them, in order
  at::Tensor on;    // (B, k) bool: those that really do, others are padding; undefined: all
  at::Tensor mask;  // (B, N) bool, of the patches
};
/// The patches that select_tokens chooses (dydit/plan/run_plan.h): the `keep` largest of logits (B, N), first
/// of equals first, or with keep < 0 those above the threshold, of which at most `cap` a sample are looked
/// for. The `extras` tokens in front of the patches always take part. `starts` (B) int64: each sample's first
/// row.
Chosen choose(const at::Tensor& logits, int keep, int cap, int extras, const at::Tensor& starts);

/// x (B, T, C), whose chosen rows are wanted -> (B, k, C); all: x itself.
at::Tensor taken(const at::Tensor& x, const Chosen& chosen);
/// The other way: chosen rows of x <- rows (B, k, C).
void put(at::Tensor& x, const Chosen& chosen, const at::Tensor& rows);

/// Whether rows of layer(x), x (4096, in) of random numbers with `options`, are the same bits when there are
/// 256 or 1000 of them: what a library promises of no product, and an image's independence of its batch
/// needs.
bool rows_are_independent(const std::function<at::Tensor(const at::Tensor& x)>& layer, int64_t in,
                          const at::TensorOptions& options);

/// A host's tensor on `device`; without waiting for the device.
at::Tensor to_device(const at::Tensor& host, at::Device device);

}  // namespace dydit::aten
