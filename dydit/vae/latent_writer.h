// Images -> packed latents (dydit/io/latents_index.h): shard by shard, each whole or not there at all, so
// that a run that ends early goes on where it stopped. The bytes depend on images, autoencoder and options
// alone: not on batch, threads, processes or interruptions.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "dydit/base/progress.h"
#include "dydit/data/dataset.h"
#include "dydit/io/tensor_view.h"
#include "dydit/vae/autoencoder.h"
#include "dydit/vae/tiling.h"

namespace dydit {

struct LatentWriteOptions {
  std::filesystem::path folder;  // is made
  int64_t shard_size = 8192;     // images a file
  Dtype dtype = Dtype::F16;      // as stored: F16, BF16 or F32
  bool flips = true;             // the mirrored image's latent, too: a latent cannot be mirrored itself
  bool normalize = false;        // the scale becomes (z - mean) / std of the channels of this set
  int batch = 8;                 // images encoded together
  int threads = 1;               // that decode images and read what was written
  std::string source;            // the images' name, for the metadata
  std::string vae_sha256;        // of the autoencoder's file
  VaeTiling tiling = VaeTiling::None;
  std::string encode_dtype = "float32";  // what the autoencoder computes in
};

/// One process of several that write a set together: shard k is that of process k mod size.
struct LatentWriters {
  int rank = 0, size = 1;
  std::function<void()> barrier = [] {};
};

struct LatentWriteReport {
  int64_t images = 0, shards = 0;
  int64_t written = 0, kept = 0;                  // shards of this process; those that were there before
  uint64_t bytes = 0;                             // of all shards
  std::vector<double> channel_mean, channel_std;  // of process 0
};

/// Throws UsageError for a side that the autoencoder does not divide; Error for shards of other settings in
/// the folder, a latent that the dtype cannot hold, a full disk (what is whole stays); Cancelled between
/// batches.
LatentWriteReport write_latents(const Dataset& images, const Autoencoder& autoencoder,
                                const LatentWriteOptions& options, const LatentWriters& writers = {},
                                const ProgressFn& on_progress = {}, const CancelFlag* cancel = nullptr);

/// How well images survive: PSNR in dB, for values in [-1, 1], of `count` images spread evenly over the set.
std::vector<double> reconstruction_psnr(const Dataset& images, const Autoencoder& autoencoder, int64_t count,
                                        VaeTiling tiling = VaeTiling::None);

}  // namespace dydit
