// Latents as a data set: what a model sees is drawn from the posterior, anew in every epoch.
#pragma once

#include <filesystem>
#include <memory>

#include "dydit/data/dataset.h"
#include "dydit/data/latents.h"

namespace dydit {

/// x = scale.to_model(mean + std noise): noise and flip are functions of (seed, image, epoch), so of neither
/// batch nor processes. No flip where mirrored images were not encoded.
class LatentDataset final : public Dataset {
 public:
  LatentDataset(LatentSource source, const DatasetOptions& options, const std::string& name);

  int64_t size() const override { return static_cast<int64_t>(source_.labels.size()); }
  int label(int64_t index) const override;
  void read_values(int64_t index, const Draw& draw, float* out) const override;
  void read(int64_t index, std::span<uint8_t> out) const override;
  const LatentInfo* latents() const override { return &source_.info; }
  bool decodes() const override { return true; }
  std::string fingerprint(int threads) const override;

 private:
  LatentSource source_;
  std::string name_;
};

/// The set at a path for which latent_layout() says something.
std::unique_ptr<Dataset> load_latents(const std::filesystem::path& path, const DatasetOptions& options);

}  // namespace dydit
