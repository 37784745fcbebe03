#include "dydit/engine/cpu/product.h"

#include <algorithm>
#include <span>

namespace dydit::cpu {
namespace {

constexpr int kChunkRows = 208;  // of one task
// Rows of a task that are read once a panel stay in the second-level cache, of which some have half a
// megabyte.
constexpr int64_t kRereadBytes = 160 << 10;
constexpr int kFetchRows = 96;  // a task of fewer would spend its time waiting for what the next one needs

// Panels cut into tiles' widths, which differ by one panel at most.
class Columns {
 public:
  explicit Columns(std::span<const Panel> panels)
      : panels_(panels), count_(ceil_div(static_cast<int>(panels.size()), kTilePanels)) {}

  int count() const { return count_; }
  std::span<const Panel> panels(int column) const {
    const size_t size = panels_.size() / count_, wider = panels_.size() % count_, at = column;
    return panels_.subspan(at * size + std::min(at, wider), size + (at < wider));
  }

 private:
  std::span<const Panel> panels_;
  int count_;
};

}  // namespace

void (*gemm_of(const PackedLinear& weights))(const Gemm&) {
  const bool bf16 = weights.bf16_activations();
  if (weights.int8()) return bf16 ? int8_kernels()->gemm_bf16 : int8_kernels()->gemm_float;
  return bf16 ? kernels().gemm_bf16 : weights.expands() ? kernels().gemm_float_bf16 : kernels().gemm_float;
}

int most_rows(const Gemm& gemm) {
  if (kernels().tile_panels == kTilePanels) return kChunkRows;
  const int64_t row_bytes = int64_t{2} * sizeof(float) * gemm.segment_pairs * gemm.num_segments;
  return static_cast<int>(std::clamp<int64_t>(kRereadBytes / row_bytes, 6 * kTileRows, kChunkRows));
}

// Tasks of some rows by one tile's width, many enough to share out evenly.
void run_product(Team& team, const PackedLinear& weights, const Panels& panels, Gemm gemm, int rows,
                 const ThreadFloats& expanded) {
  const Columns whole(panels.whole), narrow(panels.narrow);
  const int columns = whole.count() + narrow.count(), all = 0;
  if (gemm.segments == nullptr) {
    gemm.segments = &all;
    gemm.num_segments = 1;
  }
  gemm.segment_pairs = weights.segment_pairs();
  const auto run = gemm_of(weights);
  const int tile_rows = run == kernels().gemm_bf16 ? kernels().bf16_tile_rows : kTileRows;
  const int wanted = ceil_div(4 * team.threads(), columns);
  const int most = run == kernels().gemm_float ? most_rows(gemm) : kChunkRows;
  const int chunks = std::clamp(std::max(ceil_div(rows, most), wanted), 1, ceil_div(rows, 4 * kTileRows));
  const int chunk = ceil_div(ceil_div(rows, chunks), tile_rows) * tile_rows;
  const int tasks = ceil_div(rows, chunk) * columns;
  const auto is_narrow = [&](int task) { return task % columns >= whole.count(); };
  const auto panels_of = [&](int task) {
    const int column = task % columns;
    return is_narrow(task) ? narrow.panels(column - whole.count()) : whole.panels(column);
  };
  team.run(tasks, [&](int task, int thread) {
    const std::span<const Panel> now = panels_of(task);
    Gemm part = gemm;
    part.row_begin = task / columns * chunk;
    part.row_end = std::min(rows, part.row_begin + chunk);
    part.panels = now.data();
    part.num_panels = static_cast<int>(now.size());
    part.narrow = is_narrow(task);
    if (weights.expands()) part.expanded = expanded.of(thread);
    if (const int next = task + team.threads();
        next < tasks && is_narrow(next) == part.narrow && chunk >= kFetchRows) {
      const std::span<const Panel> then = panels_of(next);
      part.next = then.data();
      part.num_next = static_cast<int>(then.size());
    }
    run(part);
  });
}

}  // namespace dydit::cpu
