// The own kernels of the GPU engine, as functions of plain C++: pointers are to the GPU's memory, `stream` is
// a cudaStream_t, calls return at once and throw Error where CUDA refuses the launch. Nothing waits and
// nothing is allocated, so all of it can be captured in a graph. A row's result depends on that row alone,
// bit for bit.
//
// Letters: B samples of T = E + N tokens each, E of them in front of the patches; C hidden size; M = B T
// rows, row b T + t is token t of sample b; n active heads of D values. Activations are bfloat16, the
// residual stream x float32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dydit/base/bf16.h"

namespace dydit::cuda {

/// Whether this build has the kernels, and the current device code of them (sm_80 and sm_90 have). Where it
/// has not, all other functions throw.
bool has_kernels();

/// What adaLN says of a row's sample (DiT, section 3.2): vectors over C in float32, 16-byte aligned. Sample b
/// reads shift + stride index[b], and so on.
struct Modulation {
  const float* shift = nullptr;   // of the norm
  const float* scale1 = nullptr;  // 1 + scale, of the norm
  const float* gate = nullptr;    // of the branch that is added; null: 1
  int64_t stride = 0;             // floats from row to row of modulations, a multiple of 4
  const int* index = nullptr;     // (B) on the GPU; null: sample b reads row b
};

/// What a branch adds to the stream: row r of x += gate y[inverse[r]].
struct Addend {
  const Bf16* y = nullptr;       // (positions, C), 16-byte aligned; null: nothing is added
  const int* inverse = nullptr;  // (M): a row's position in y, -1: none; null: every row has its own
};

/// Which rows, of samples of how many tokens, of how many values.
struct Rows {
  int count = 0;                   // M, or positions; at most so many where `on_device` is given
  int tokens = 1;                  // T
  int C = 0;                       // a multiple of 4, at most kMaxC
  const int* on_device = nullptr;  // (1): how many there are, read by the kernel; null: `count`
};

inline constexpr int kMaxC = 1152;

/// x += gate y, and out = layer_norm(x, eps) scale1 + shift of the sum: a branch's end and the next one's
/// begin in one pass. Rows that nothing is added to are not written.  out (M, C), null: x alone; x (M, C).
void residual_norm(Bf16* out, float* x, const Addend& addend, const Modulation& modulation, const Rows& rows,
                   float eps, void* stream);

/// out[p] = layer_norm(x[chosen[p]], eps) scale1 + shift for positions p; none of -1.  out (positions, C); x
/// (M, C); chosen (positions) rows of x, null: row p. rows.count is of positions.
void norm_gather(Bf16* out, const float* x, const int* chosen, const Modulation& modulation, const Rows& rows,
                 float eps, void* stream);

/// The token router of a block (DyDiT, section 3.3): w2 relu(w1 x + b1) + b2, C -> R -> 1.
struct TokenRouter {
  const uint32_t* w1 = nullptr;  // pack_router's, on the GPU
  const float* b1 = nullptr;     // (R)
  const float* w2 = nullptr;     // (R)
  const float* b2 = nullptr;     // (1)
  int R = 0;                     // at most kMaxRouter
};

inline constexpr int kMaxRouter = 72;

/// Words of a packed w1, and w1 (R, C) float32 -> packed, both on the CPU: what the lanes of a warp read
/// together lies together, each value as the sum of two of bfloat16. C is a multiple of 16.
size_t packed_router_words(int C, int R);
void pack_router(uint32_t* packed, const float* w1, int C, int R);

/// x += gate y, and logits = router(x) of the sum. Products of bfloat16 pairs, hi hi + hi lo + lo hi: some
/// 2^-16 of the largest term, so decisions are float32's but for logits that near to their limit.  logits
/// (M); x (M, C), C a multiple of 16.
void residual_router(float* logits, float* x, const Addend& addend, const TokenRouter& router,
                     const Modulation& modulation, const Rows& rows, void* stream);

/// Which tokens enter a branch, sample by sample, each in `capacity` positions of its own: sample b's lie
/// from b capacity on, in the order of the tokens.
struct ChosenTokens {
  int* rows = nullptr;     // (B, capacity): the row at a position, -1 behind the last
  int* inverse = nullptr;  // (M): a row's position, -1 where the token is off
  int* counts =
      nullptr;  // (B): tokens that are on, E included; above `capacity` the last of them have no position
};

/// How tokens are chosen, as select_tokens does (dydit/plan): the `keep` largest logits, first of equals
/// first, or, where keep is negative, those above `threshold`. The E tokens in front of the patches are
/// always on.
struct TokenRule {
  int keep = -1;
  float threshold = 0;
  int extras = 0;    // E
  int capacity = 0;  // positions a sample, at most T; by count E + keep
};

/// logits (B, T); those of tokens in front are not read.
void choose_tokens(const ChosenTokens& chosen, const float* logits, const TokenRule& rule, int B, int T,
                   void* stream);

/// Whether attention() can: N = 256, D = 64 or 72, on a device with 100 KB of shared memory for a block.
bool has_attention(int N, int D);

/// out = softmax(scale q k^T) v of every head. The heads' order is that of qkv.  out (B, N, n, D); qkv (B, N,
/// n, 3, D), both 16-byte aligned.
void attention(Bf16* out, const Bf16* qkv, float scale, int B, int N, int n, int D, void* stream);

}  // namespace dydit::cuda
