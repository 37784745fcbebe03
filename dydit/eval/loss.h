// The training loss on held-out images by decile of t: how well a model predicts at every noise level, with
// the gates of inference and the engine that generates.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "dydit/base/progress.h"
#include "dydit/data/dataset.h"
#include "dydit/engine/engine.h"

namespace dydit {

inline constexpr int kDeciles = 10;

struct LossOptions {
  int64_t num_images = 1000;          // spread evenly over the data set; all when it has fewer
  std::vector<uint64_t> seeds = {0};  // of the noise; each sees the same images and timesteps
  int batch = 64;                     // changes speed, never a result
  int threads = 1;
  at::ScalarType dtype = at::kFloat;
  EngineKind engine = EngineKind::Cpu;
  DeviceOptions where = {};
  Mode mode = Mode::Dynamic;
  int level = 0;  // of the model's patch sizes

  EngineOptions engine_options() const {
    EngineOptions options{.dtype = dtype, .threads = threads, .where = where};
    options.where.rows = batch;
    return options;
  }
};

/// Means over images of t in [100 d, 100 d + 100), in continuous time thousandths of the noise share.
struct DecileLoss {
  std::vector<double> mse, vb;                    // one a seed; vb in bits, zero without learned sigma
  double heads = 1, groups = 1, tokens = 1;       // shares kept, over blocks too
  double required_share = 1, executed_share = 1;  // of the static model's multiply-adds
};

/// The same for all deciles together: index kDeciles.
using LossReport = std::array<DecileLoss, kDeciles + 1>;

/// Image i meets one t in each decile d, 100 d + 10 (i mod 10) + 5, its own label, and noise that is a
/// function of (seed, image, t). A latent is one draw of the first seed. Throws UsageError where data and
/// model do not fit, Cancelled between batches.
LossReport evaluate_loss(const Checkpoint& checkpoint, const Dataset& dataset, const LossOptions& options,
                         const ProgressFn& on_progress = {}, const CancelFlag* cancel = nullptr);

}  // namespace dydit
