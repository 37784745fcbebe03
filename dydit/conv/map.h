// Maps: what flows through an autoencoder, pixel by pixel (NHWC), one image at a time.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "dydit/base/bf16.h"
#include "dydit/engine/cpu/memory.h"

namespace dydit::conv {

/// Count, mean and sum of squares about it of a group's values.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  /// Chan, Golub and LeVeque 1979.
  void add(const Moments& other) {
    if (other.count == 0) return;
    const double total = count + other.count, delta = other.mean - mean;
    squares += other.squares + delta * delta * count * other.count / total;
    mean += delta * other.count / total;
    count = total;
  }
};

struct Map {
  int64_t at(int y, int x) const { return (int64_t{y} * W + x) * stride; }  // element
  template <typename T>
  T* as() const {
    return static_cast<T*>(memory.get());
  }
  float value(int64_t element) const {
    return bf16 ? std::bit_cast<float>(uint32_t{as<Bf16>()[element].bits} << 16) : as<float>()[element];
  }
  bool is_finite() const {
    for (int y = 0; y < H; ++y) {
      for (int x = 0; x < W; ++x) {
        for (int c = 0; c < C; ++c) {
          if (!std::isfinite(value(at(y, x) + c))) return false;
        }
      }
    }
    return true;
  }

  int H = 0, W = 0, C = 0;
  int64_t stride = 0;  // elements from pixel to pixel: more than C in a map that held more channels
  bool bf16 = false;
  std::vector<Moments> moments;  // of its groups, where they were asked for
  size_t bytes = 0;              // of its memory
  cpu::Memory memory;
};

/// Memory of maps that come and go: what one leaves the next takes, since new pages cost as much as writing
/// them.
class MapPool {
 public:
  enum class Kind { Memory, CountsOnly };
  explicit MapPool(Kind kind) : kind_(kind) {}

  Map take(int H, int W, int C, bool bf16) {
    Map map;
    map.H = H;
    map.W = W;
    map.C = C;
    map.stride = C;
    map.bf16 = bf16;
    const size_t bytes = size_t{1} * H * W * C * (bf16 ? 2 : 4);
    auto best = free_.end();  // the smallest that is large enough
    for (auto piece = free_.begin(); piece != free_.end(); ++piece) {
      if (piece->bytes >= bytes && (best == free_.end() || piece->bytes < best->bytes)) best = piece;
    }
    if (best != free_.end()) {
      map.bytes = best->bytes;
      map.memory = std::move(best->memory);
      free_.erase(best);
      return map;
    }
    for (const Map& piece : free_) held_ -= static_cast<double>(piece.bytes);
    free_.clear();  // all too small
    map.bytes = bytes;
    if (kind_ == Kind::Memory) map.memory = cpu::allocate(bytes);
    held_ += static_cast<double>(bytes);
    return map;
  }
  void give(Map&& map) {
    if (map.bytes > 0) free_.push_back(std::move(map));
    map = {};
  }
  /// Bytes of all maps, those that are free included.
  double held_bytes() const { return held_; }

 private:
  const Kind kind_;
  std::vector<Map> free_;
  double held_ = 0;
};

}  // namespace dydit::conv
