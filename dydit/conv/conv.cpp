#include "dydit/conv/conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <ATen/ATen.h>

#include "dydit/base/isa.h"
#include "dydit/base/row_pool.h"

namespace dydit::conv {

namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const Kernels kernels;
}

const Kernels& kernels() {
  if (active_isa() >= Isa::Avx512Bf16) return avx512_bf16::kernels;
  return active_isa() >= Isa::Avx512 ? avx512::kernels : avx2::kernels;
}

namespace {

using cpu::ceil_div;
using cpu::even;

constexpr int kLine = 64;
// Winograd's tiles pay where the products outweigh what goes around them.
constexpr int kWinogradChannels = 16;

// Tiles of a block to each side, about, and so rows of a product: few enough for the second-level cache, many
// enough for every panel of weights that is read. A map is cut evenly: 17 tiles are 9 and 8, 11 are one
// block.
constexpr int kBlock = 8, kMostOfBlock = 11;
static_assert(kBlock * kBlock * 3 / 2 <= kMostOfBlock * kMostOfBlock);  // pixels of one row

int even_parts(int tiles, int about) { return ceil_div(tiles, std::max(1, (tiles + about / 2) / about)); }

size_t round_up(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// G w G^T of (out, in, 3, 3) in float64, as (products, out, in): Winograd's G, or the sums of Upsample.
at::Tensor transformed(const at::Tensor& weight, Tiling tiling) {
  const at::Tensor G =
      tiling == Tiling::Winograd
          ? at::tensor({1.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, -0.5, 0.5, 0.0, 0.0, 1.0}, at::kDouble)
                .view({4, 3})
          : at::tensor({1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0}, at::kDouble).view({3, 3});
  return at::matmul(at::kron(G, G), weight.reshape({-1, 9}).t());
}

// Whether there are kernels for it; else bfloat16 weights are multiplied in float32, which is more exact.
bool multiplies_bf16() { return cpu::kernels().gemm_bf16 != nullptr; }

}  // namespace

// How the output is cut. A pixelwise convolution sees a map as one row of pixels.
struct Conv::Grid {
  int in_height, in_width, height, width;  // pixels
  int tiles_y, tiles_x;                    // of a block
  int blocks_x, blocks;
};

// Part of the output that one thread computes.
struct Conv::Block {
  int tiles_y, tiles_x;  // of the block
  int y, x;              // its first pixel
  int rows, cols;        // pixels that there are
  int patch_y, patch_x;  // first pixel of its patch, in the input
  int patch_rows, patch_cols;
};

// A thread's memory: the patch, the products' rows and sums, a block's moments.
struct Conv::Room {
  std::byte *patch, *rows;
  float *sums, *moments;
  int64_t row_stride, sum_stride;  // elements from product to product, apart in the caches' sets
  size_t bytes;
};

Conv::Conv(const at::Tensor& weight, const at::Tensor& bias, const ConvShape& shape, bool bf16,
           cpu::Arena& arena, Team& team)
    : shape_(shape),
      bf16_(bf16 && multiplies_bf16()),
      columns_(ceil_div(shape.out, cpu::kPanel) * cpu::kPanel) {
  if (shape.upsample) {
    tiling_ = Tiling::Upsample;
  } else if (!bf16_ && shape.rows.taps == 3 && shape.columns.taps == 3 && shape.stride == 1 &&
             std::min(shape.in, shape.out) >= kWinogradChannels) {
    tiling_ = Tiling::Winograd;
  }
  const OneThread here;  // else sums would be those of the machine's cores
  const at::Tensor w = (bf16 && !bf16_ ? weight.to(at::kBFloat16) : weight)
                           .to(at::kDouble)
                           .reshape({shape.out, shape.in, shape.rows.taps, shape.columns.taps});
  const at::Tensor matrix = (tiling_ == Tiling::Direct ? w.permute({0, 2, 3, 1}) : transformed(w, tiling_))
                                .to(at::kFloat)
                                .contiguous();
  const int products = products_of(tiling_);
  const int inputs = tiling_ == Tiling::Direct ? shape.in * shape.rows.taps * shape.columns.taps : shape.in;
  row_ = even(inputs);
  packed_ = cpu::PackedLinear(matrix.view({int64_t{products} * shape.out, inputs}),
                              at::zeros({int64_t{products} * shape.out}), products, /*in_segments=*/1,
                              bf16_ ? kLevelBf16Dot : kLevelF32, /*narrow=*/false, arena, team);
  for (int p = 0; p < products; ++p) {
    cpu::Panels panels;
    packed_.add_panels(p, 0, panels);
    panels_.push_back(std::move(panels.whole));
  }
  bias_.assign(columns_, 0.0f);
  if (bias.defined()) {
    const at::Tensor values = bias.to(at::kFloat).contiguous();
    std::copy_n(values.const_data_ptr<float>(), shape.out, bias_.begin());
  }
}

int64_t Conv::executed_macs(int out_height, int out_width) const {
  const int side = side_of(tiling_);
  return int64_t{ceil_div(out_height, side)} * ceil_div(out_width, side) * products_of(tiling_) * row_ *
         columns_;
}

Conv::Room Conv::room(const cpu::Buffer& scratch) const {
  constexpr int kTiles = kMostOfBlock * kMostOfBlock;
  const int products = products_of(tiling_);
  const size_t element = bf16_ ? 2 : 4;
  const auto side = [&](const Extent& extent) {
    return tiling_ == Tiling::Winograd   ? 2 * kMostOfBlock + 2
           : tiling_ == Tiling::Upsample ? kMostOfBlock + 2
                                         : (kMostOfBlock - 1) * shape_.stride + extent.taps;
  };
  Room room = {};
  room.row_stride = kTiles * row_ + static_cast<int64_t>(kLine / element);
  room.sum_stride = kTiles * columns_ + cpu::kPanel;
  const size_t patch = round_up(element * side(shape_.rows) * side(shape_.columns) * shape_.in),
               rows = round_up(element * products * room.row_stride),
               sums = sizeof(float) * products * room.sum_stride;
  room.patch = scratch.as<std::byte>();
  room.rows = room.patch + patch;
  room.sums = reinterpret_cast<float*>(room.rows + rows);
  room.moments = room.sums + products * room.sum_stride;
  room.bytes = patch + rows + sums + sizeof(float) * 3 * columns_;
  return room;
}

size_t Conv::scratch_bytes() const { return room({}).bytes; }

Conv::Grid Conv::grid(const Map& from, const Map& to) const {
  Grid g = {from.H, from.W, to.H, to.W, 0, 0, 0, 0};
  if (shape_.is_pixelwise()) {
    g.in_width *= g.in_height;
    g.width *= g.height;
    g.in_height = g.height = g.tiles_y = 1;
    g.tiles_x = even_parts(g.width, kBlock * kBlock);
  } else {
    const int side = side_of(tiling_);
    g.tiles_y = even_parts(ceil_div(g.height, side), kBlock);
    g.tiles_x = even_parts(ceil_div(g.width, side), kBlock);
  }
  g.blocks_x = ceil_div(g.width, g.tiles_x * side_of(tiling_));
  g.blocks = ceil_div(g.height, g.tiles_y * side_of(tiling_)) * g.blocks_x;
  return g;
}

Conv::Block Conv::block(int index, const Grid& g) const {
  const int side = side_of(tiling_), most_y = g.tiles_y * side, most_x = g.tiles_x * side;
  Block b = {};
  b.y = index / g.blocks_x * most_y;
  b.x = index % g.blocks_x * most_x;
  b.rows = std::min(most_y, g.height - b.y);
  b.cols = std::min(most_x, g.width - b.x);
  b.tiles_y = ceil_div(b.rows, side);
  b.tiles_x = ceil_div(b.cols, side);
  switch (tiling_) {
    case Tiling::Winograd:
      b.patch_rows = 2 * b.tiles_y + 2;
      b.patch_cols = 2 * b.tiles_x + 2;
      b.patch_y = b.y - shape_.rows.before;
      b.patch_x = b.x - shape_.columns.before;
      break;
    case Tiling::Upsample:
      b.patch_rows = b.tiles_y + 2;
      b.patch_cols = b.tiles_x + 2;
      b.patch_y = b.y / 2 - 1;
      b.patch_x = b.x / 2 - 1;
      break;
    case Tiling::Direct:
      b.patch_rows = (b.rows - 1) * shape_.stride + shape_.rows.taps;
      b.patch_cols = (b.cols - 1) * shape_.stride + shape_.columns.taps;
      b.patch_y = b.y * shape_.stride - shape_.rows.before;
      b.patch_x = b.x * shape_.stride - shape_.columns.before;
      break;
  }
  return b;
}

// The products' rows of the block's tiles.
template <typename A>
void Conv::gather(A* rows, const A* patch, const Block& b) const {
  const int64_t product_stride = room({}).row_stride, patch_row = int64_t{b.patch_cols} * shape_.in;
  const int step = tiling_ == Tiling::Winograd ? 2 : shape_.stride;  // pixels of the patch from tile to tile
  for (int y = 0; y < b.tiles_y; ++y) {
    for (int x = 0; x < b.tiles_x; ++x, rows += row_) {
      const A* from = patch + y * step * patch_row + int64_t{x} * step * shape_.in;
      if (tiling_ == Tiling::Upsample) {
        kernels().upsample[bf16_](rows, product_stride, from, patch_row, shape_.in);
      } else if constexpr (sizeof(A) == 4) {
        if (tiling_ == Tiling::Winograd) {
          kernels().winograd(rows, product_stride, from, patch_row, shape_.in);
          continue;
        }
      }
      if (tiling_ == Tiling::Direct) {
        const int run = shape_.columns.taps * shape_.in, taps = shape_.rows.taps;
        for (int k = 0; k < taps; ++k) std::copy_n(from + k * patch_row, run, rows + k * run);
        if (row_ > taps * run) rows[row_ - 1] = A{};
      }
    }
  }
}

// The sums of all products. While a tile's width of panels is multiplied, the next one is fetched: 64 rows by
// 512 inputs by 512 outputs, again and again, at 94 % of the peak instead of 70.
template <typename A>
void Conv::multiply(const A* rows, int64_t row, const Room& room, int tiles) const {
  const int whole = 0, size = static_cast<int>(panels_[0].size()), products = products_of(tiling_);
  for (int p = 0; p < products; ++p) {
    cpu::Gemm gemm;
    gemm.a = rows + p * room.row_stride;
    gemm.lda = row;
    gemm.row_end = tiles;
    gemm.segments = &whole;
    gemm.num_segments = 1;
    gemm.segment_pairs = row_ / 2;
    float* const sums = room.sums + p * room.sum_stride;
    gemm.out = sums;
    gemm.ldo = columns_;
    if (bf16_) {  // whose epilogues round, but for the one that adds
      std::fill_n(sums, int64_t{tiles} * columns_, 0.0f);
      gemm.epilogue = cpu::Epilogue::Residual;
    }
    for (int first = 0; first < size; first += cpu::kTilePanels) {
      gemm.panels = panels_[p].data() + first;
      gemm.num_panels = std::min(cpu::kTilePanels, size - first);
      const bool last = first + cpu::kTilePanels >= size;
      gemm.next = last ? panels_[(p + 1) % products].data() : gemm.panels + cpu::kTilePanels;
      gemm.num_next = std::min(cpu::kTilePanels, last ? size : size - first - cpu::kTilePanels);
      bf16_ ? cpu::kernels().gemm_bf16(gemm) : cpu::kernels().gemm_float(gemm);
    }
  }
}

// The block's part of the input, normalised and activated, zeros where there is none.
template <typename A>
void Conv::fill_patch(A* patch, const Block& b, const Grid& g, const Map& from, const ConvUse& use,
                      const std::vector<float>& scales) const {
  const int C = shape_.in;
  const int first = std::clamp(-b.patch_x, 0, b.patch_cols),
            end = std::clamp(g.in_width - b.patch_x, first, b.patch_cols);  // columns that the input has
  const size_t from_element = from.bf16 ? 2 : 4;
  for (int row = 0; row < b.patch_rows; ++row) {
    A* to_row = patch + int64_t{row} * b.patch_cols * C;
    const int y = b.patch_y + row;
    const bool inside = y >= 0 && y < g.in_height && end > first;
    const int zeros = inside ? first : b.patch_cols;
    std::fill_n(to_row, int64_t{zeros} * C, A{});
    if (!inside) continue;
    kernels().prepare[from.bf16][bf16_](
        {to_row + int64_t{first} * C, from.as<std::byte>() + from.at(y, b.patch_x + first) * from_element,
         from.stride, end - first, C, scales.empty() ? nullptr : scales.data(),
         scales.empty() ? nullptr : scales.data() + scales.size() / 2, use.before});
    std::fill_n(to_row + int64_t{end} * C, int64_t{b.patch_cols - end} * C, A{});
  }
}

template <typename A>
void Conv::run_block(const Block& b, const Room& room, const Grid& g, const Map& from, const Map& to,
                     const ConvUse& use, const std::vector<float>& scales) const {
  const int tiles = b.tiles_y * b.tiles_x;
  if (shape_.is_pixelwise() && from.bf16 == bf16_ && scales.empty() && use.before == Activation::None &&
      row_ == shape_.in && from.stride % 2 == 0) {  // whole pairs: the map is the products' rows
    multiply(from.as<const A>() + from.at(0, b.x), from.stride, room, tiles);
  } else {
    auto* const patch = reinterpret_cast<A*>(room.patch);
    auto* const rows = reinterpret_cast<A*>(room.rows);
    fill_patch(patch, b, g, from, use, scales);
    gather(rows, patch, b);
    multiply(rows, row_, room, tiles);
  }
  Finish finish = {};
  finish.sums = room.sums;
  finish.product_stride = room.sum_stride;
  finish.columns = columns_;
  finish.tiles_y = b.tiles_y;
  finish.tiles_x = b.tiles_x;
  finish.out = to.as<std::byte>() + (to.at(b.y, b.x) + use.channel) * (to.bf16 ? 2 : 4);
  finish.row_stride = to.W * to.stride;
  finish.pixel_stride = to.stride;
  finish.rows = b.rows;
  finish.cols = b.cols;
  finish.C = shape_.out;
  finish.bias = bias_.data();
  finish.add = use.add;
  finish.relu = use.after != Activation::None;
  finish.ceiling = use.after == Activation::Relu6 ? kRelu6Ceiling : std::numeric_limits<float>::infinity();
  if (use.groups > 0) {
    finish.first = room.moments;
    finish.sum = finish.first + columns_;
    finish.squares = finish.sum + columns_;
  }
  kernels().finish[static_cast<int>(tiling_)][to.bf16](finish);
}

namespace {

// The norm of a map as a factor and a summand for each channel, padded to whole panels: (2, channels).
std::vector<float> scales_of(const GroupNorm& norm, const Map& map) {
  const int padded = ceil_div(map.C, cpu::kPanel) * cpu::kPanel, size = map.C / norm.groups;
  std::vector<float> scales(2 * padded);
  for (int c = 0; c < map.C; ++c) {
    const Moments& m = map.moments[c / size];
    const double scale = norm.weight[c] / std::sqrt(m.squares / m.count + norm.eps);
    scales[c] = static_cast<float>(scale);
    scales[padded + c] = static_cast<float>(norm.bias[c] - m.mean * scale);
  }
  return scales;
}

}  // namespace

void Conv::run(Team& team, std::vector<cpu::Buffer>& scratch, const Map& from, Map& to,
               const ConvUse& use) const {
  std::vector<float> scales;
  if (use.norm != nullptr && use.norm->groups > 0) scales = scales_of(*use.norm, from);
  const Grid g = grid(from, to);
  std::vector<Moments> partial(static_cast<size_t>(g.blocks) * use.groups);
  team.run(g.blocks, [&](int index, int thread) {
    const Block b = block(index, g);
    const Room mine = room(scratch[thread]);
    bf16_ ? run_block<Bf16>(b, mine, g, from, to, use, scales)
          : run_block<float>(b, mine, g, from, to, use, scales);
    if (use.groups == 0) return;
    const double pixels = double(b.rows) * b.cols;
    const float *first = mine.moments, *sum = first + columns_, *squares = sum + columns_;
    for (int c = 0; c < shape_.out; ++c) {
      const double above = sum[c] / pixels;
      partial[static_cast<size_t>(index) * use.groups + c / (shape_.out / use.groups)].add(
          {pixels, first[c] + above, squares[c] - above * sum[c]});
    }
  });
  to.moments.assign(use.groups, {});
  for (size_t i = 0; i < partial.size(); ++i) to.moments[i % use.groups].add(partial[i]);
}

}  // namespace dydit::conv
