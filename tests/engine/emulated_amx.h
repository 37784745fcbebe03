// What dydit/engine/cpu/amx.h declares, in plain C++, so that every processor can test the kernels for AMX.
// Included ahead of kernels.cpp by the build. Ends the process where a processor would raise an exception.
#pragma once

#define DYDIT_EMULATED_AMX

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace dydit::cpu::DYDIT_LEVEL {
namespace {

struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

struct Tiles {
  TileShapes shapes = {.palette = 0};
  unsigned char bytes[8][16][64];
};
inline thread_local Tiles tiles;

inline void require(bool condition) {
  if (!condition) std::abort();
}

inline void set_tile_shapes(const TileShapes& shapes) {
  require(shapes.palette == 1 && shapes.start_row == 0);
  for (int t = 0; t < 16; ++t) {
    require(t < 8 ? shapes.rows[t] <= 16 && shapes.row_bytes[t] <= 64 : shapes.rows[t] == 0);
    require((shapes.rows[t] == 0) == (shapes.row_bytes[t] == 0));
  }
  tiles.shapes = shapes;
  std::memset(tiles.bytes, 0, sizeof tiles.bytes);
}
inline void release_tiles() { tiles.shapes.palette = 0; }

template <int Tile>
inline void clear_tile() {
  static_assert(Tile >= 0 && Tile < 8);
  require(tiles.shapes.palette == 1 && tiles.shapes.rows[Tile] > 0);
  std::memset(tiles.bytes[Tile], 0, sizeof tiles.bytes[Tile]);
}
template <int Tile>
inline void load_tile(const void* rows, int64_t stride_bytes) {
  clear_tile<Tile>();
  for (int r = 0; r < tiles.shapes.rows[Tile]; ++r) {
    std::memcpy(tiles.bytes[Tile][r], static_cast<const char*>(rows) + r * stride_bytes,
                tiles.shapes.row_bytes[Tile]);
  }
}
template <int Tile>
inline void store_tile(void* rows, int64_t stride_bytes) {
  require(tiles.shapes.palette == 1 && tiles.shapes.rows[Tile] > 0);
  for (int r = 0; r < tiles.shapes.rows[Tile]; ++r) {
    std::memcpy(static_cast<char*>(rows) + r * stride_bytes, tiles.bytes[Tile][r],
                tiles.shapes.row_bytes[Tile]);
  }
}

template <int Sum, int A, int B>
inline void multiply_tiles() {
  static_assert(Sum != A && Sum != B && A != B);
  const TileShapes& shapes = tiles.shapes;
  require(shapes.palette == 1 && shapes.rows[Sum] > 0);
  require(shapes.rows[Sum] == shapes.rows[A] && shapes.row_bytes[Sum] == shapes.row_bytes[B] &&
          shapes.row_bytes[A] == 4 * shapes.rows[B]);
  const auto element = [](const unsigned char* row, int index) {
    uint16_t bits;
    std::memcpy(&bits, row + 2 * index, sizeof bits);
    return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
  };
  for (int m = 0; m < shapes.rows[Sum]; ++m) {
    for (int n = 0; n < shapes.row_bytes[Sum] / 4; ++n) {
      float halves[2] = {};  // of even and of odd inputs, as the processor sums them
      for (int p = 0; p < shapes.rows[B]; ++p) {
        for (int half = 0; half < 2; ++half) {
          halves[half] = __builtin_fmaf(element(tiles.bytes[A][m], 2 * p + half),
                                        element(tiles.bytes[B][p], 2 * n + half), halves[half]);
        }
      }
      float sum;
      std::memcpy(&sum, tiles.bytes[Sum][m] + 4 * n, sizeof sum);
      sum += halves[0] + halves[1];
      std::memcpy(tiles.bytes[Sum][m] + 4 * n, &sum, sizeof sum);
    }
  }
}

}  // namespace
}  // namespace dydit::cpu::DYDIT_LEVEL
