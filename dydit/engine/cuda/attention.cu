// Launches attention.
#include <numbers>

#include "dydit/engine/cuda/attention.cuh"
#include "dydit/engine/cuda/launch.h"

namespace dydit::cuda {
namespace {

// How many times 64 queries a block takes, of one head of one sample: with fewer blocks keys and values are
// copied less often, with more the machine is filled sooner. Some 264 blocks run at a time.
int rounds_of(int heads) { return heads >= 264 ? 4 : heads >= 132 ? 2 : 1; }

template <int kHead>
void attention_of(Bf16* out, const Bf16* qkv, float scale, int B, int n, void* stream) {
  using Shape = AttentionShape<kHead>;
  const int rounds = rounds_of(B * n);
  const Grid grid = {.x = Shape::kTokens / Shape::kRoundQueries / rounds,
                     .y = n,
                     .z = B,
                     .threads = Shape::kThreads,
                     .shared = Shape::kBytes};
  launch(attention_kernel<kHead>, grid, stream, out, qkv, scale * std::numbers::log2e_v<float>, n, rounds);
}

}  // namespace

bool has_attention(int N, int D) {
  if (N != AttentionShape<64>::kTokens || (D != 64 && D != 72)) return false;
  return max_shared_bytes() >= (D == 64 ? AttentionShape<64>::kBytes : AttentionShape<72>::kBytes);
}

void attention(Bf16* out, const Bf16* qkv, float scale, int B, int N, int n, int D, void* stream) {
  require(has_attention(N, D), "attention has no kernel for this N and D");
  if (B == 0 || n == 0) return;
  D == 64 ? attention_of<64>(out, qkv, scale, B, n, stream) : attention_of<72>(out, qkv, scale, B, n, stream);
}

}  // namespace dydit::cuda
