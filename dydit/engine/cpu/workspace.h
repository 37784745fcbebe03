// How a batch is divided among passes and threads, and the memory that they work in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dydit/engine/engine.h"

namespace dydit::cpu {

/// As many samples as all threads can have the same number of: each thread does its own from end to end. The
/// few that are left, and a batch smaller than the threads, go through all threads together.
struct Division {
  int alone = 0, tasks = 0;  // the first samples of the batch, in tasks that differ by one sample at most
  int together = 0, samples = 0;  // the others, so many a pass
  int samples_alone() const { return tasks > 0 ? (alone + tasks - 1) / tasks : 0; }  // of the largest task
};
/// Of B samples of N tokens each, those in front of the patches included.
Division divide(int B, int N, int threads);

/// Rows of one pass: [first, first + count) of a RowGroups.
struct Piece {
  int first, count;
};

/// The rows of a batch, those whose plans do the same work one after the other.
class RowGroups {
 public:
  void assign(std::span<const Row> rows);

  /// Numbers of the rows in the batch.
  std::span<const int> rows(const Piece& piece) const {
    return std::span(order_).subspan(piece.first, piece.count);
  }
  /// No piece has rows of two groups, or more rows than the division says.
  std::vector<Piece> pieces_alone(const Division& division) const;
  std::vector<Piece> pieces_together(const Division& division) const;

 private:
  std::vector<int> order_;
  std::vector<int> starts_;  // of each group in order_, then the number of rows
};

/// Bytes of the buffers of a pass with everything on, of plans that name so many ranges.
struct PassBytes {
  size_t x, rows, qkv, heads, hidden, patches, logits, before, joined, outputs;
  double sum() const;
};
PassBytes pass_bytes(const DiTConfig& config, bool bf16, int samples, int ranges, int level = 0);

/// Bytes that the passes of `rows` samples take at least, attention's scratch memory included; bf16: of the
/// activations.
double workspace_bytes(const DiTConfig& config, bool bf16, int64_t rows, int threads, int ranges);

}  // namespace dydit::cpu
