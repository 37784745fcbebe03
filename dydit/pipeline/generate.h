// The main path: checkpoint -> width plan -> engine -> sampler -> samples.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/base/progress.h"
#include "dydit/diffusion/guidance.h"
#include "dydit/diffusion/sampler.h"
#include "dydit/engine/engine.h"
#include "dydit/model/checkpoint.h"
#include "dydit/plan/width_plan.h"

namespace dydit {

/// Philox: a function of (seed, image, step). Torch: torch.randn's stream, as the original script draws: the
/// starts of all images, then in every step all rows, guidance halves included. One batch, and an image
/// depends on how many are made.
enum class NoiseKind { Philox, Torch };
inline constexpr EnumNames<NoiseKind, 2> kNoiseNames = {
    "noise", {{"philox", NoiseKind::Philox}, {"torch", NoiseKind::Torch}}};

struct GenerateOptions {
  std::vector<int> classes = {0};  // image i gets classes[i mod size]
  int num_images = 1;
  int num_steps = 250;
  std::vector<int> timesteps = {};  // by hand, in any order, instead of num_steps; empty: chosen
  SamplerOptions sampler;
  float cfg_scale = 4.0f;  // <= 1: no guidance, one row an image
  // First channels of eps that are guided, never more than there are; unset: kGuidedChannels, in diffusers'
  // semantics all.
  std::optional<int> guided_channels = {};
  uint64_t seed = 0;
  NoiseKind noise = NoiseKind::Philox;
  int batch = 16;  // images sampled together; changes speed and memory, never a pixel
  int threads = 1;
  at::ScalarType dtype = at::kFloat;
  EngineKind engine = EngineKind::Cpu;
  Mode mode = Mode::Dynamic;
  int preview_every = 0;   // steps from one on_preview to the next; 0: none
  bool token_map = false;  // also fill GeneratedSample::token_share

  bool guided() const { return cfg_scale > 1.0f; }
  int channels_guided(const DiTConfig& config) const;
  int total_steps() const { return timesteps.empty() ? num_steps : static_cast<int>(timesteps.size()); }
  int label(int index) const { return classes[index % classes.size()]; }
};

struct GeneratedSample {
  int index = 0;  // of the run, from 0; keys the noise
  int label = 0;
  at::Tensor sample;            // (in_channels, side, side) float32: a latent, or pixels in about [-1, 1]
  double seconds = 0;           // its batch's sampling time / images of the batch
  Work work;                    // summed over steps and guidance halves
  at::Tensor token_share = {};  // (N) float32, of the (step, block, guidance half) in which a token entered
                                // the MLP; undefined unless asked for and the run routes tokens
};

struct Preview {
  int first = 0;  // index of its first image
  int step = 0;   // steps done, from 1
  at::Tensor x0;  // (images, in_channels, side, side) float32, predicted in that step; valid during the call
};

struct GenerateCallbacks {
  std::function<void(GeneratedSample&&)> on_sample;          // in order of index, as batches finish
  ProgressFn on_progress;                                    // after each sampling step
  std::function<void(const Preview&)> on_preview = nullptr;  // not after the last step: that is the image
  const CancelFlag* cancel = nullptr;                        // looked at between steps
};

/// Generates all samples. Sample i depends on (weights, label, seed, i, steps, sampler, guidance, dtype,
/// engine) alone, bit for bit on one processor; with NoiseKind::Torch on the number of images, too. Throws
/// UsageError for options out of range, Error where the memory cannot suffice, and Cancelled between steps;
/// samples of finished batches have been delivered by then.
void generate(const Checkpoint& checkpoint, const GenerateOptions& options,
              const GenerateCallbacks& callbacks);

/// The timesteps of a run: those given by hand, else choose_timesteps'.
Spacing run_spacing(const GenerateOptions& options);

/// Bytes that a run with batches of `count` images takes at least, beside the checkpoint and what the
/// callbacks keep.
double least_generate_bytes(const Checkpoint& checkpoint, const GenerateOptions& options, int count);

/// Multiply-adds that the static model spends on one sample of this run.
int64_t static_macs_per_sample(const DiTConfig& config, const GenerateOptions& options);

}  // namespace dydit
