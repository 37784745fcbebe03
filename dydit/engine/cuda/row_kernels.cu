// Launches the passes over rows.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "dydit/engine/cuda/row_kernels.cuh"

namespace dydit::cuda {
namespace {

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// Calls `call` with the first of the values that is at least `wanted`, as a type.
template <int... kValues, typename Call>
void dispatch_at_least(int wanted, const Call& call) {
  bool done = false;
  ((!done && kValues >= wanted ? (done = true, call(Constant<kValues>{})) : void()), ...);
}

void check_rows(const Rows& rows, const Modulation& modulation, int multiple) {
  require(rows.C > 0 && rows.C <= kMaxC && rows.C % multiple == 0, "a kernel does not take rows of this C");
  require(modulation.stride % kLaneFloats == 0, "a kernel does not take modulations this far apart");
}

Grid row_grid(const Rows& rows) {
  return {.x = std::min(divided_up(rows.count, kRowWarps), kMaxBlocks), .threads = kRowWarps * kWarp};
}

// Calls with the chunks of a row of C values.
template <typename Call>
void dispatch_chunks(int C, const Call& call) {
  dispatch_at_least<1, 2, 3, 4, 5, 6, 7, 8, 9>(divided_up(C, kChunk), call);
}

int router_tiles(int R) {
  int tiles = 0;
  dispatch_at_least<1, 2, 3, 4, 6, 8, 9>(divided_up(R, kTileHidden), [&](auto count) { tiles = count; });
  return tiles;
}

// From so many rows on a block takes two bands: half the reading of w1, which is then as much as that of x.
// Below, more blocks are worth more.
constexpr int kTwoBands = 4096;

uint16_t rounded_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace

bool has_kernels() { return has_code(choose_tokens_kernel); }

void residual_norm(Bf16* out, float* x, const Addend& addend, const Modulation& modulation, const Rows& rows,
                   float eps, void* stream) {
  check_rows(rows, modulation, kLaneFloats);
  if (rows.count == 0 || (out == nullptr && addend.y == nullptr)) return;
  dispatch_chunks(rows.C, [&](auto chunks) {
    launch(residual_norm_kernel<chunks()>, row_grid(rows), stream, out, x, addend, modulation, rows, eps);
  });
}

void norm_gather(Bf16* out, const float* x, const int* chosen, const Modulation& modulation, const Rows& rows,
                 float eps, void* stream) {
  check_rows(rows, modulation, kLaneFloats);
  if (rows.count == 0) return;
  dispatch_chunks(rows.C, [&](auto chunks) {
    launch(norm_gather_kernel<chunks()>, row_grid(rows), stream, out, x, chosen, modulation, rows, eps);
  });
}

size_t packed_router_words(int C, int R) {
  return static_cast<size_t>(C / kDepth) * router_tiles(R) * kWarp * (sizeof(Words4) / sizeof(uint32_t));
}

void pack_router(uint32_t* packed, const float* w1, int C, int R) {
  const int tiles = router_tiles(R);
  for (int k = 0; k < C / kDepth; ++k) {
    for (int tile = 0; tile < tiles; ++tile) {
      for (int lane = 0; lane < kWarp; ++lane) {
        const int hidden = tile * kTileHidden + lane / kRowLanes,
                  in = k * kDepth + lane % kRowLanes * kLaneFloats;
        uint32_t hi[kLaneFloats] = {}, lo[kLaneFloats] = {};
        for (int i = 0; i < kLaneFloats && hidden < R; ++i) {
          const float value = w1[int64_t{hidden} * C + in + i];
          hi[i] = rounded_bf16(value);
          lo[i] = rounded_bf16(value - std::bit_cast<float>(hi[i] << 16));
        }
        *packed++ = hi[0] | hi[1] << 16;
        *packed++ = hi[2] | hi[3] << 16;
        *packed++ = lo[0] | lo[1] << 16;
        *packed++ = lo[2] | lo[3] << 16;
      }
    }
  }
}

void residual_router(float* logits, float* x, const Addend& addend, const TokenRouter& router,
                     const Modulation& modulation, const Rows& rows, void* stream) {
  check_rows(rows, modulation, kDepth);
  require(router.R > 0 && router.R <= kMaxRouter, "a kernel does not take a router of this size");
  if (rows.count == 0) return;
  const auto with = [&](auto tiles, auto bands) {
    const Grid grid = {.x = divided_up(rows.count, bands * kBandRows),
                       .threads = kRouterWarps * kWarp,
                       .shared = sums_bytes(tiles, bands)};
    launch(residual_router_kernel<tiles(), bands()>, grid, stream, logits, x, addend, router, modulation,
           rows);
  };
  dispatch_at_least<1, 2, 3, 4, 6, 8, 9>(router_tiles(router.R), [&](auto tiles) {
    rows.count < kTwoBands ? with(tiles, Constant<1>{}) : with(tiles, Constant<2>{});
  });
}

void choose_tokens(const ChosenTokens& chosen, const float* logits, const TokenRule& rule, int B, int T,
                   void* stream) {
  require(rule.extras >= 0 && rule.extras <= T && rule.capacity >= 0 && rule.capacity <= T,
          "a kernel does not take this many tokens or positions");
  if (B == 0) return;
  const int threads = std::min(divided_up(T, kWarp) * kWarp, kChoiceThreads);
  launch(choose_tokens_kernel, {.x = B, .threads = threads, .shared = choice_bytes(T - rule.extras)}, stream,
         chosen, logits, rule, T);
}

}  // namespace dydit::cuda
