// Attention of 256 tokens, out = softmax(scale q k^T) v: a warp has 16 queries, and all 256 of their scores
// at once, in registers; so softmax is that of the definition, without rescaling, and scores turn into the
// fragments of the second product where they lie. Keys and values are in shared memory, copied once a block;
// a block has 64 queries a round. Heads of 72 are padded to 80 with zeros in q k^T alone.
#pragma once

#include "dydit/engine/cuda/device.h"

namespace dydit::cuda {

template <int kHead>
struct AttentionShape {
  static_assert(kHead % 8 == 0);
  static constexpr int kTokens = 256;
  static constexpr int kWarps = 4;
  static constexpr int kQueries = 16;  // of a warp, in a round
  static constexpr int kRoundQueries = kWarps * kQueries;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kPieces = kHead / 8;                  // of 16 bytes, of a head's row
  static constexpr int kDepth = divided_up(kHead, 16) * 16;  // of q k^T
  // From row to row an odd number of pieces, so that eight rows meet no bank twice.
  static constexpr int kKeyStride = kDepth + 8;
  static constexpr int kValueStride = kPieces % 2 ? kHead : kHead + 8;
  static constexpr int kKeys = 0, kValues = kKeys + kTokens * kKeyStride;  // elements from the beginning
  static constexpr int kQuery = kValues + kTokens * kValueStride;   // of queries, a warp after the other
  static constexpr int kOut = kQuery + kRoundQueries * kKeyStride;  // of results
  static constexpr int kBytes = (kOut + kRoundQueries * kValueStride) * static_cast<int>(sizeof(Bf16));
};

/// `count` rows of a head on their way to shared memory, `threads` of them that call; padding becomes zero.
template <int kHead, int kStride, int kPadded>
DYDIT_DEVICE void copy_rows(Bf16* shared, const Bf16* global, int64_t stride, int count, int thread,
                            int threads) {
  constexpr int kPieces = kPadded / 8;
  for (int i = thread; i < count * kPieces; i += threads) {
    const int row = i / kPieces, piece = i % kPieces;
    Bf16* const to = shared + row * kStride + piece * 8;
    if (piece < kHead / 8) {
      copy_async(to, global + row * stride + piece * 8);
    } else {
      *reinterpret_cast<Words4*>(to) = {0, 0, 0, 0};
    }
  }
}

/// scores (16, 256) of a warp = q k^T, in fragments of 8 keys.
template <int kHead>
DYDIT_DEVICE void multiply_keys(float (&scores)[32][4], const uint32_t (&queries)[divided_up(kHead, 16)][4],
                                const Bf16* keys) {
  using Shape = AttentionShape<kHead>;
  const int lane = thread_index() % kWarp;
  // Four matrices: keys 0 to 7 and 8 to 15 of a sixteen, the two halves of a depth of 16 of each.
  const Bf16* const from = keys + (lane / 16 * 8 + lane % 8) * Shape::kKeyStride + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < Shape::kDepth / 16; ++k) {
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      uint32_t b[4];
      load_matrices(b, from + j * 16 * Shape::kKeyStride + k * 16);
      multiply_add(scores[2 * j], queries[k], b[0], b[1]);
      multiply_add(scores[2 * j + 1], queries[k], b[2], b[3]);
    }
  }
}

/// Scores <- 2^(factor (score - largest of its row)), as the fragments of 16 keys that multiply values;
/// `inverse`
/// <- 1 / the sums of the rows g and g + 8.
DYDIT_DEVICE void soften(uint32_t (&weights)[16][4], float (&inverse)[2], const float (&scores)[32][4],
                         float factor) {
  float largest[2] = {scores[0][0], scores[0][2]}, sums[2] = {0, 0};
#pragma unroll
  for (const auto& tile : scores) {
#pragma unroll
    for (int i = 0; i < 4; ++i) largest[i / 2] = fmaxf(largest[i / 2], tile[i]);
  }
#pragma unroll
  for (int mask = 1; mask < 4; mask *= 2) {
#pragma unroll
    for (float& value : largest) value = fmaxf(value, shuffle_xor(value, mask));
  }
#pragma unroll
  for (int j = 0; j < 16; ++j) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {  // rows g and g + 8 of keys 0 to 7, then of 8 to 15
      const int row = part % 2;
      const float(&tile)[4] = scores[2 * j + part / 2];
      const float a = fast_exp2(factor * (tile[2 * row] - largest[row]));
      const float b = fast_exp2(factor * (tile[2 * row + 1] - largest[row]));
      sums[row] += a + b;
      weights[j][part] = pack_bf16(a, b);
    }
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    sums[row] += shuffle_xor(sums[row], 1);
    sums[row] += shuffle_xor(sums[row], 2);
    inverse[row] = 1.0f / sums[row];
  }
}

/// out (16, D) of a warp = weights v, in fragments of 8 columns.
template <int kHead>
DYDIT_DEVICE void multiply_values(float (&out)[kHead / 8][4], const uint32_t (&weights)[16][4],
                                  const Bf16* values) {
  using Shape = AttentionShape<kHead>;
  const int lane = thread_index() % kWarp;
  // Four matrices, transposed: keys 0 to 7 and 8 to 15 of 8 columns, then of the next 8.
  const Bf16* const from = values + lane % 16 * Shape::kValueStride + lane / 16 * 8;
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    const Bf16* const row = from + j * 16 * Shape::kValueStride;
#pragma unroll
    for (int tile = 0; tile + 1 < Shape::kPieces; tile += 2) {
      uint32_t b[4];
      load_transposed(b, row + tile * 8);
      multiply_add(out[tile], weights[j], b[0], b[1]);
      multiply_add(out[tile + 1], weights[j], b[2], b[3]);
    }
    if constexpr (Shape::kPieces % 2) {
      uint32_t b[2];
      load_transposed(b, row - lane / 16 * 8 + (Shape::kPieces - 1) * 8);
      multiply_add(out[Shape::kPieces - 1], weights[j], b[0], b[1]);
    }
  }
}

/// A warp's 16 rows of out, in fragments -> bfloat16 by way of `shared`, where they become pieces of 16
/// bytes.
template <int kHead>
DYDIT_DEVICE void store_rows(Bf16* global, int64_t stride, Bf16* shared, const float (&out)[kHead / 8][4],
                             const float (&factor)[2]) {
  using Shape = AttentionShape<kHead>;
  const int lane = thread_index() % kWarp;
  Bf16* const to = shared + lane / 4 * Shape::kValueStride + lane % 4 * 2;
#pragma unroll
  for (int tile = 0; tile < Shape::kPieces; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<uint32_t*>(to + half * 8 * Shape::kValueStride + tile * 8) =
          pack_bf16(out[tile][2 * half] * factor[half], out[tile][2 * half + 1] * factor[half]);
  }
  sync_warp();
  for (int i = lane; i < Shape::kQueries * Shape::kPieces; i += kWarp) {
    const int row = i / Shape::kPieces, piece = i % Shape::kPieces;
    *reinterpret_cast<Words4*>(global + row * stride + piece * 8) =
        *reinterpret_cast<const Words4*>(shared + row * Shape::kValueStride + piece * 8);
  }
  sync_warp();  // before the next round's results
}

// Grid: (256 / 64 / rounds, n, B).  factor: scale log2(e), as powers are of two.
// check_kernels attention_kernel: registers <= 232, shared <= 102400, LDGSTS.E.BYPASS.128,
// LDSM.16.M88.4, LDSM.16.MT88.4, HMMA.16816.F32.BF16
static_assert(AttentionShape<72>::kBytes <= 102400 && AttentionShape<64>::kBytes <= 102400);
template <int kHead>
DYDIT_KERNEL DYDIT_BOUNDS(AttentionShape<kHead>::kThreads, 2)
    attention_kernel(Bf16* out, const Bf16* qkv, float factor, int n, int rounds) {
  using Shape = AttentionShape<kHead>;
  auto* const shared = static_cast<Bf16*>(shared_memory());
  const int thread = thread_index(), lane = thread % kWarp, warp = thread / kWarp, head = block_y();
  const int64_t in_stride = int64_t{n} * 3 * kHead, out_stride = int64_t{n} * kHead;
  const Bf16* const q = qkv + block_z() * Shape::kTokens * in_stride + head * 3 * kHead;
  Bf16* const own_out = out + block_z() * Shape::kTokens * out_stride + head * kHead;
  Bf16* const own_query = shared + Shape::kQuery + warp * Shape::kQueries * Shape::kKeyStride;
  const int first = block_x() * rounds * Shape::kRoundQueries + warp * Shape::kQueries;
  const auto fetch_queries = [&](int round) {
    copy_rows<kHead, Shape::kKeyStride, Shape::kDepth>(own_query,
                                                       q + (first + round * Shape::kRoundQueries) * in_stride,
                                                       in_stride, Shape::kQueries, lane, kWarp);
  };

  fetch_queries(0);
  copy_rows<kHead, Shape::kKeyStride, Shape::kDepth>(shared + Shape::kKeys, q + kHead, in_stride,
                                                     Shape::kTokens, thread, Shape::kThreads);
  close_copies();
  copy_rows<kHead, Shape::kValueStride, kHead>(shared + Shape::kValues, q + 2 * kHead, in_stride,
                                               Shape::kTokens, thread, Shape::kThreads);
  close_copies();
  wait_for_copies<1>();
  sync_block();
  for (int round = 0; round < rounds; ++round) {
    uint32_t queries[Shape::kDepth / 16][4];
#pragma unroll
    for (int k = 0; k < Shape::kDepth / 16; ++k)
      load_matrices(queries[k], own_query + lane % 16 * Shape::kKeyStride + k * 16 + lane / 16 * 8);
    sync_warp();  // all have read theirs
    if (round + 1 < rounds) fetch_queries(round + 1);
    close_copies();

    uint32_t weights[16][4];
    float inverse[2];
    {
      float scores[32][4] = {};
      multiply_keys<kHead>(scores, queries, shared + Shape::kKeys);
      soften(weights, inverse, scores, factor);
    }
    if (round == 0) {
      wait_for_copies<1>();  // the values, but not the next queries
      sync_block();
    }
    float rows[kHead / 8][4] = {};
    multiply_values<kHead>(rows, weights, shared + Shape::kValues);
    store_rows<kHead>(own_out + (first + round * Shape::kRoundQueries) * out_stride, out_stride,
                      shared + Shape::kOut + warp * Shape::kQueries * Shape::kValueStride, rows, inverse);
    wait_for_copies<0>();
    sync_warp();
  }
}

}  // namespace dydit::cuda
