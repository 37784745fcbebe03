// A step as pieces that read and write tensors at fixed places, and what replays them: CUDA graphs (cuda.h),
// elsewhere calls.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include <c10/core/Device.h>

#include "dydit/engine/engine.h"

namespace dydit::aten {

/// What is done, by counts: pieces of one key do the same, whatever lies in the tensors that they read.
using PieceKey = std::vector<int>;
struct StepPiece {
  PieceKey key;
  std::function<void()> body;  // nothing of one step is in it
};

/// Uses of a key before it is captured.
inline constexpr int kGraphWarmUps = 2;
/// Whole steps of more keys than this are replayed piece by piece, of which so many are kept.
inline constexpr size_t kStepGraphs = 16, kPieceGraphs = 512;
/// Above so many rows launching takes less time than computing, and GraphMode::Auto replays nothing.
inline constexpr int kGraphRows = 8;

class StepGraphs {
 public:
  virtual ~StepGraphs() = default;
  /// The pieces in order. In a piece's place the body that its key was given first may run.
  virtual void run(const std::vector<StepPiece>& pieces, int rows) = 0;
  /// Does work that belongs between steps, in the same order of the device.
  virtual void within(const std::function<void()>& work) { work(); }
  /// Until all that was begun is done, for whoever measures time.
  virtual void wait() {}
  /// The tensors that the bodies read have moved.
  virtual void forget() = 0;
};

std::unique_ptr<StepGraphs> make_step_graphs(at::Device device, GraphMode mode);

}  // namespace dydit::aten
