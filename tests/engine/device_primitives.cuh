// A kernel that calls every primitive of device.h once: compiled for the card and for the CPU, whose results
// must be equal.
#pragma once

#include "dydit/engine/cuda/device.h"

namespace dydit::cuda {

inline constexpr int kPrimitiveThreads = 64, kPrimitiveBlocks = 3;
inline constexpr int kPrimitiveInputs = 16;  // words a thread

/// What a thread found.
struct Primitives {
  // Of its place.
  int thread, threads, x, y, z, grid;
  // Of its warp: word 0 as a float from lane (own xor 1, 2, 4, 8, 16); who has an odd word 0; how many.
  float shuffled[5];
  uint32_t odd;
  int odd_count;
  // Words 4 to 13 are a (4), b (2) and d (4).
  float product[4];
  // Rows of 16 bytes are words 0 to 3, of which lane l names that of lane (5 l + 3) % 32.
  uint32_t matrices[4], transposed[4], two_transposed[2];
  uint32_t copied[4];  // by the thread opposite in the block
  uint32_t packed;     // of words 14 and 15 as floats
  // Nearly equal on both sides: of word 0 in [1, 9).
  float exp2, rsqrt;
};
inline constexpr int kEqualWords =
    static_cast<int>((sizeof(Primitives) - 2 * sizeof(float)) / sizeof(uint32_t));

DYDIT_KERNEL primitives_kernel(Primitives* out, const uint32_t* in) {
  const int block = (block_z() * kPrimitiveBlocks + block_y()) * grid_x() + block_x();
  const int thread = block * kPrimitiveThreads + thread_index(), lane = thread_index() % kWarp;
  const uint32_t* const own = in + thread * kPrimitiveInputs;
  Primitives& found = out[thread];
  found.thread = thread_index();
  found.threads = block_threads();
  found.x = block_x();
  found.y = block_y();
  found.z = block_z();
  found.grid = grid_x();

  const auto value = std::bit_cast<float>(own[0]);
#pragma unroll
  for (int i = 0; i < 5; ++i) found.shuffled[i] = shuffle_xor(value, 1 << i);
  found.odd = ballot(own[0] % 2 == 1);
  found.odd_count = count_bits(found.odd);

  const uint32_t a[4] = {own[4], own[5], own[6], own[7]};
  float d[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) d[i] = std::bit_cast<float>(own[10 + i]);
  multiply_add(d, a, own[8], own[9]);
#pragma unroll
  for (int i = 0; i < 4; ++i) found.product[i] = d[i];

  auto* const rows = static_cast<Words4*>(shared_memory());  // two halves of a row a thread
  rows[thread_index()] = {own[0], own[1], own[2], own[3]};
  copy_async(rows + kPrimitiveThreads + thread_index(), own);
  close_copies();
  sync_warp();
  const Words4* const named = rows + thread_index() / kWarp * kWarp + (5 * lane + 3) % kWarp;
  load_matrices(found.matrices, named);
  load_transposed(found.transposed, named);
  load_transposed(found.two_transposed, named);
  wait_for_copies<0>();
  sync_block();
  const Words4 copied = rows[2 * kPrimitiveThreads - 1 - thread_index()];
  found.copied[0] = copied.x;
  found.copied[1] = copied.y;
  found.copied[2] = copied.z;
  found.copied[3] = copied.w;

  found.packed = pack_bf16(std::bit_cast<float>(own[14]), std::bit_cast<float>(own[15]));
  found.exp2 = fast_exp2(-value);
  found.rsqrt = fast_rsqrt(value);
}

/// Runs it in a grid of (1, kPrimitiveBlocks, 2). Both pointers where kernels find them.
inline void run_primitives(Primitives* out, const uint32_t* in) {
  launch(primitives_kernel,
         {.y = kPrimitiveBlocks,
          .z = 2,
          .threads = kPrimitiveThreads,
          .shared = 2 * kPrimitiveThreads * static_cast<int>(sizeof(Words4))},
         nullptr, out, in);
}

inline constexpr int kAllPrimitiveThreads = 2 * kPrimitiveBlocks * kPrimitiveThreads;

}  // namespace dydit::cuda
