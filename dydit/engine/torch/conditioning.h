// What depends on a row's timestep, level and label alone: adaLN's outputs of all blocks and the tokens in
// front of the patches. Made for many rows at a time and ahead of the steps that read it, kept in a table on
// the device.
#pragma once

#include <map>
#include <set>
#include <span>
#include <vector>

#include "dydit/engine/engine.h"
#include "dydit/model/dit.h"

namespace dydit::aten {

/// Rows of one product: always as many, so that a row's result does not depend on the others.
inline constexpr int kConditionedRows = 32;

/// Where a forward of B rows reads it, at places that do not move. What the model does not have is undefined.
struct Conditioned {
  at::Tensor blocks;  // (B, L, 6, C) shift, 1 + scale and gate of attention, then of the MLP
  at::Tensor final;   // (B, 2C) shift and scale
  at::Tensor front;   // (B, extras, C)
};

class Conditioning {
 public:
  Conditioning(const DiT& model, at::Device device);

  /// Memory for a forward of so many rows.
  Conditioned make(int64_t rows) const;
  /// A hint, as Workspace::prepare.
  void expect(std::vector<Visit> visits) { expected_ = std::move(visits); }
  /// Of these rows, into the first places of `out`.
  void fill(std::span<const Row> rows, Conditioned& out);

  /// Bytes of the table at most: as many rows as fit in a budget, never fewer than `rows`.
  static int64_t table_bytes(const DiTConfig& config, at::Device device, int64_t rows);

 private:
  using Key = std::pair<Visit, int64_t>;  // and the label

  void compute(const std::vector<Key>& keys);
  std::vector<Key> next(const std::vector<Key>& missing, const std::set<int64_t>& labels, size_t most) const;

  mutable DiT model_;  // a handle
  const at::Device device_;
  Conditioned table_;
  size_t capacity_ = 0;
  std::map<Key, int64_t> places_;
  std::vector<Visit> expected_;
};

}  // namespace dydit::aten
