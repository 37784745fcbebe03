// The tile registers of AMX: eight matrices of up to 16 rows of 64 bytes. For files compiled once a level
// (DYDIT_LEVEL); everything has internal linkage. As assembler, since the compiler's own functions take the
// registers' numbers as literals only, not from a template.
//
// The tests put functions of the same names in place of these, which any processor runs
// (tests/engine/emulated_amx.h).
#pragma once

#ifndef DYDIT_EMULATED_AMX

#include <cstdint>

namespace dydit::cpu::DYDIT_LEVEL {
namespace {

/// Rows and bytes a row of every tile, as the processor reads them.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

/// Clears all tiles.
inline void set_tile_shapes(const TileShapes& shapes) {
  asm volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
}
/// The operating system then need not keep the tiles of this thread.
inline void release_tiles() { asm volatile("tilerelease" : : : "memory"); }

template <int Tile>
inline void load_tile(const void* rows, int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride_bytes), "i"(Tile) : "memory");
}
template <int Tile>
inline void store_tile(void* rows, int64_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(stride_bytes), "i"(Tile) : "memory");
}
template <int Tile>
inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
/// sum (rows, 16) float32 += a (rows, pairs) times b (pairs, 16), both of pairs of bfloat16.
template <int Sum, int A, int B>
inline void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(A), "i"(B));
}

}  // namespace
}  // namespace dydit::cpu::DYDIT_LEVEL

#endif
