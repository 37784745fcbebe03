#include "dydit/vae/tiling.h"

#include <algorithm>
#include <functional>
#include <vector>

#include <ATen/ATen.h>

#include "dydit/base/error.h"

namespace dydit {
namespace {

constexpr double kOverlap = .25;

// b's first `extent` rows (dim 2) or columns (dim 3) go over from the last of its neighbour to its own.
void blend(const at::Tensor& neighbour, at::Tensor& b, int64_t extent, int64_t dim) {
  extent = std::min({extent, neighbour.size(dim), b.size(dim)});
  for (int64_t i = 0; i < extent; ++i) {
    const double share = static_cast<double>(i) / static_cast<double>(extent);
    at::Tensor own = b.select(dim, i);
    own.copy_(neighbour.select(dim, neighbour.size(dim) - extent + i) * (1 - share) + own * share);
  }
}

struct TileGrid {
  int64_t tile, step;    // of the input
  int64_t blend, limit;  // of the output: rows that go over, rows of a tile that are kept
};

// In row-major order; neighbours are blended already, which shows at corners.
at::Tensor in_tiles(const at::Tensor& x, const TileGrid& grid,
                    const std::function<at::Tensor(const at::Tensor&)>& apply) {
  std::vector<at::Tensor> above, bands;
  for (int64_t y = 0; y < x.size(2); y += grid.step) {
    std::vector<at::Tensor> row, kept;
    for (int64_t left = 0; left < x.size(3); left += grid.step) {
      at::Tensor tile = apply(x.slice(2, y, y + grid.tile).slice(3, left, left + grid.tile).contiguous());
      if (y > 0) blend(above[row.size()], tile, grid.blend, 2);
      if (left > 0) blend(row.back(), tile, grid.blend, 3);
      row.push_back(tile);
      kept.push_back(tile.slice(2, 0, grid.limit).slice(3, 0, grid.limit));
    }
    bands.push_back(at::cat(kept, 3));
    above = std::move(row);
  }
  return at::cat(bands, 2);
}

struct DiffusersTile {
  int sample, latent;  // sides of a tile
};
DiffusersTile diffusers_tile(const Autoencoder& autoencoder) {
  const AutoencoderConfig& config = autoencoder.config();
  DYDIT_USAGE_CHECK(config.kind == AutoencoderKind::Kl,
                    "tiling diffusers is AutoencoderKL's; a tiny autoencoder needs none");
  return {config.sample_size, config.sample_size / config.factor()};
}

int64_t part(int side, double share) { return static_cast<int64_t>(side * share); }
bool fits(const at::Tensor& x, int tile) { return x.size(2) <= tile && x.size(3) <= tile; }

}  // namespace

at::Tensor decode(const Autoencoder& autoencoder, const at::Tensor& z, VaeTiling tiling) {
  if (tiling == VaeTiling::None) return autoencoder.decode(z);
  if (tiling == VaeTiling::Approximate) return autoencoder.decode_in_tiles(z);
  const auto [sample, latent] = diffusers_tile(autoencoder);
  if (fits(z, latent)) return autoencoder.decode(z);
  const int64_t seam = part(sample, kOverlap);
  return in_tiles(z, {latent, part(latent, 1 - kOverlap), seam, sample - seam},
                  [&](const at::Tensor& tile) { return autoencoder.decode(tile); });
}

at::Tensor moments(const Autoencoder& autoencoder, const at::Tensor& images, VaeTiling tiling) {
  if (tiling != VaeTiling::Diffusers) return autoencoder.moments(images);
  const auto [sample, latent] = diffusers_tile(autoencoder);
  if (fits(images, sample)) return autoencoder.moments(images);
  const int64_t seam = part(latent, kOverlap);
  return in_tiles(images, {sample, part(sample, 1 - kOverlap), seam, latent - seam},
                  [&](const at::Tensor& tile) { return autoencoder.moments(tile); });
}

}  // namespace dydit
