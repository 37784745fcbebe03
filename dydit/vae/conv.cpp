#include "dydit/vae/conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <ATen/ATen.h>

#include "dydit/base/isa.h"
#include "dydit/base/row_pool.h"

namespace dydit::vae {

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

// Tiles of a block to each side, and so rows of a product: few enough for the second-level cache, many enough
// for every panel of weights that is read.
constexpr int kBlock = 8;

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

}  // namespace

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
    : shape_(shape), bf16_(bf16), columns_(ceil_div(shape.out, cpu::kPanel) * cpu::kPanel) {
  if (shape.upsample) {
    tiling_ = Tiling::Upsample;
  } else if (!bf16 && shape.kernel == 3 && shape.stride == 1 &&
             std::min(shape.in, shape.out) >= kWinogradChannels) {
    tiling_ = Tiling::Winograd;
  }
  const OneThread here;  // else sums would be those of the machine's cores
  const at::Tensor w = weight.to(at::kDouble).reshape({shape.out, shape.in, shape.kernel, shape.kernel});
  const at::Tensor matrix = (tiling_ == Tiling::Direct ? w.permute({0, 2, 3, 1}) : transformed(w, tiling_))
                                .to(at::kFloat)
                                .contiguous();
  const int products = products_of(tiling_);
  const int inputs = tiling_ == Tiling::Direct ? shape.in * shape.kernel * shape.kernel : shape.in;
  row_ = even(inputs);
  packed_ = cpu::PackedLinear(matrix.view({int64_t{products} * shape.out, inputs}),
                              at::zeros({int64_t{products} * shape.out}), products, /*in_segments=*/1, bf16,
                              /*narrow=*/false, arena, team);
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
  const int tiles = kBlock * kBlock, products = products_of(tiling_);
  const size_t element = bf16_ ? 2 : 4;
  const int side = tiling_ == Tiling::Winograd   ? 2 * kBlock + 2
                   : tiling_ == Tiling::Upsample ? kBlock + 2
                                                 : (kBlock - 1) * shape_.stride + shape_.kernel;
  Room room = {};
  room.row_stride = tiles * row_ + static_cast<int64_t>(kLine / element);
  room.sum_stride = tiles * columns_ + cpu::kPanel;
  const size_t patch = round_up(element * side * side * shape_.in),
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

Conv::Block Conv::block(int index, const Map& to) const {
  const int side = side_of(tiling_), most = kBlock * side, blocks_x = ceil_div(to.W, most);
  Block b = {};
  b.y = index / blocks_x * most;
  b.x = index % blocks_x * most;
  b.rows = std::min(most, to.H - b.y);
  b.cols = std::min(most, to.W - b.x);
  b.tiles_y = ceil_div(b.rows, side);
  b.tiles_x = ceil_div(b.cols, side);
  switch (tiling_) {
    case Tiling::Winograd:
      b.patch_rows = 2 * b.tiles_y + 2;
      b.patch_cols = 2 * b.tiles_x + 2;
      b.patch_y = b.y - shape_.before;
      b.patch_x = b.x - shape_.before;
      break;
    case Tiling::Upsample:
      b.patch_rows = b.tiles_y + 2;
      b.patch_cols = b.tiles_x + 2;
      b.patch_y = b.y / 2 - 1;
      b.patch_x = b.x / 2 - 1;
      break;
    case Tiling::Direct:
      b.patch_rows = (b.rows - 1) * shape_.stride + shape_.kernel;
      b.patch_cols = (b.cols - 1) * shape_.stride + shape_.kernel;
      b.patch_y = b.y * shape_.stride - shape_.before;
      b.patch_x = b.x * shape_.stride - shape_.before;
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
        const int run = shape_.kernel * shape_.in;
        for (int k = 0; k < shape_.kernel; ++k) std::copy_n(from + k * patch_row, run, rows + k * run);
        if (row_ > shape_.kernel * run) rows[row_ - 1] = A{};
      }
    }
  }
}

// The sums of all products. While a tile's width of panels is multiplied, the next one is fetched: 64 rows by
// 512 inputs by 512 outputs, again and again, at 94 % of the peak instead of 70.
template <typename A>
void Conv::multiply(const A* rows, const Room& room, int tiles) const {
  const int whole = 0, size = static_cast<int>(panels_[0].size()), products = products_of(tiling_);
  for (int p = 0; p < products; ++p) {
    cpu::Gemm gemm;
    gemm.a = rows + p * room.row_stride;
    gemm.lda = row_;
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

template <typename A>
void Conv::run_block(const Block& b, const Room& room, const Map& from, const Map& to, const ConvUse& use,
                     const std::vector<float>& scales) const {
  auto* const patch = reinterpret_cast<A*>(room.patch);
  const int C = shape_.in;
  const int first = std::clamp(-b.patch_x, 0, b.patch_cols),
            end = std::clamp(from.W - b.patch_x, first, b.patch_cols);  // columns that the input has
  const size_t from_element = from.bf16 ? 2 : 4;
  for (int row = 0; row < b.patch_rows; ++row) {
    A* to_row = patch + int64_t{row} * b.patch_cols * C;
    const int y = b.patch_y + row;
    const bool inside = y >= 0 && y < from.H && end > first;
    const int zeros = inside ? first : b.patch_cols;
    std::fill_n(to_row, int64_t{zeros} * C, A{});
    if (!inside) continue;
    kernels().prepare[from.bf16][bf16_](
        {to_row + int64_t{first} * C, from.as<std::byte>() + from.at(y, b.patch_x + first) * from_element,
         from.stride, end - first, C, scales.empty() ? nullptr : scales.data(),
         scales.empty() ? nullptr : scales.data() + scales.size() / 2, use.before});
    std::fill_n(to_row + int64_t{end} * C, int64_t{b.patch_cols - end} * C, A{});
  }
  auto* const rows = reinterpret_cast<A*>(room.rows);
  gather(rows, patch, b);

  multiply(rows, room, b.tiles_y * b.tiles_x);
  Finish finish = {};
  finish.sums = room.sums;
  finish.product_stride = room.sum_stride;
  finish.columns = columns_;
  finish.tiles_y = b.tiles_y;
  finish.tiles_x = b.tiles_x;
  finish.out = to.as<std::byte>() + to.at(b.y, b.x) * (to.bf16 ? 2 : 4);
  finish.row_stride = to.W * to.stride;
  finish.pixel_stride = to.stride;
  finish.rows = b.rows;
  finish.cols = b.cols;
  finish.C = shape_.out;
  finish.bias = bias_.data();
  finish.add = use.add;
  finish.activation = use.after;
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
  const int most = kBlock * side_of(tiling_), blocks = ceil_div(to.H, most) * ceil_div(to.W, most);
  std::vector<Moments> partial(static_cast<size_t>(blocks) * use.groups);
  run_tasks(team, blocks, [&](int index, int thread) {
    const Block b = block(index, to);
    const Room mine = room(scratch[thread]);
    bf16_ ? run_block<Bf16>(b, mine, from, to, use, scales)
          : run_block<float>(b, mine, from, to, use, scales);
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

}  // namespace dydit::vae
