// adaLN: shifts, scales and gates of all blocks, which depend on timestep and label alone; and the timesteps'
// embeddings.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "dydit/base/team.h"
#include "dydit/engine/cpu/kernels.h"
#include "dydit/engine/cpu/packed_model.h"
#include "dydit/engine/cpu/product.h"
#include "dydit/engine/engine.h"

namespace dydit::cpu {

/// The modulations of a run: computed for all that a forward needs in one product, and for as many of the
/// timesteps that come next as fit in 64 MB.
class Modulation {
 public:
  /// expanded: of run_product().
  Modulation(const PackedModel& model, const ThreadFloats& expanded) : model_(model), expanded_(expanded) {}

  /// What forwards will visit, in this order.
  void expect(std::vector<Visit> visits);

  struct Key {
    Visit visit;
    int64_t label;
    auto operator<=>(const Key&) const = default;
  };
  /// Floats of a modulation: L (6C), then the final layer's 2C.
  int64_t size() const { return size_; }
  /// keys (B) -> each one's modulation, valid until the next call. When memory runs out, nothing is held.
  std::span<const float* const> of(std::span<const Key> keys, Team& team);
  /// The embeddings (C) of the same keys' timesteps, valid as long.
  std::span<const float* const> times() const { return times_; }

 private:
  int64_t find(const Key& key) const;  // where it is held; -1: nowhere
  void hold(std::span<const Key> keys);
  void compute(Team& team);
  void embed(std::span<const Visit> visits, Team& team);
  void multiply(const PackedLinear& weights, const Gemm& gemm, int rows, Team& team);

  const PackedModel& model_;
  const ThreadFloats expanded_;
  const int C_ = model_.config().hidden_size;
  const int row_ = even(C_);
  const int64_t size_ = int64_t{model_.config().depth} * 6 * C_ + 2 * C_;
  std::vector<Visit> order_;
  std::vector<Key> held_;       // ascending; row i of modulations_ is held_[i]'s
  std::vector<int> time_rows_;  // of t_emb_, of each
  Buffer conditions_, modulations_;
  std::vector<float> hidden_, t_emb_;
  Panels panels_;
  std::vector<const float*> found_, times_;
};

}  // namespace dydit::cpu
