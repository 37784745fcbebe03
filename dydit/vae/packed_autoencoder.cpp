// The class that runs an encoder and a decoder, image by image.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/base/isa.h"
#include "dydit/base/machine.h"
#include "dydit/vae/autoencoder.h"
#include "dydit/vae/networks.h"
#include "dydit/vae/torch_autoencoder.h"

namespace dydit {
namespace vae {
namespace {

// Image b of (B, C, H, W) as a map, each value through `fn`.
template <typename Fn>
Map to_map(MapPool& pool, const at::Tensor& images, int64_t b, const Fn& fn) {
  const at::Tensor image = images[b].permute({1, 2, 0}).contiguous();
  Map map = pool.take(static_cast<int>(image.size(0)), static_cast<int>(image.size(1)),
                      static_cast<int>(image.size(2)), /*bf16=*/false);
  const auto* from = image.const_data_ptr<float>();
  auto* to = map.as<float>();
  for (int64_t i = 0; i < image.numel(); ++i) to[i] = fn(from[i]);
  return map;
}

// to (C, H, W), each value through `fn`; false where one is not finite.
template <typename Fn>
bool to_image(float* to, const Map& map, const Fn& fn) {
  bool finite = true;
  for (int c = 0; c < map.C; ++c) {
    for (int y = 0; y < map.H; ++y) {
      for (int x = 0; x < map.W; ++x) {
        const float v = map.value(map.at(y, x) + c);
        finite = finite && std::isfinite(v);
        *to++ = fn(v);
      }
    }
  }
  return finite;
}

constexpr auto kTinyClamp = [](float v) { return 3 * std::tanh(v / 3); };
constexpr auto kTinyPixel = [](float v) { return 2 * v - 1; };
constexpr auto kSame = [](float v) { return v; };

at::Tensor to_tensor(const Map& map) {
  at::Tensor image = at::empty({1, map.C, map.H, map.W});
  to_image(image.data_ptr<float>(), map, kSame);
  return image;
}

// Some rows and columns of a map, with the moments of all of it.
Map gather(MapPool& pool, const Map& map, const std::vector<int>& rows, const std::vector<int>& cols) {
  Map part = pool.take(static_cast<int>(rows.size()), static_cast<int>(cols.size()), map.C, map.bf16);
  part.moments = map.moments;
  const size_t element = map.bf16 ? 2 : 4, pixel = map.C * element;
  auto* to = part.as<std::byte>();
  for (const int y : rows) {
    for (const int x : cols) {
      std::memcpy(to, map.as<std::byte>() + map.at(y, x) * element, pixel);
      to += pixel;
    }
  }
  return part;
}

std::vector<int> range(int begin, int end) {
  std::vector<int> all(end - begin);
  std::iota(all.begin(), all.end(), begin);
  return all;
}

// Of `size` rows or columns, every `every`th band.
std::vector<int> bands(int size, int every) {
  constexpr int kBand = 16;  // 8 and 32 were further from the whole on a map that is not everywhere alike
  std::vector<int> some;
  for (int i = 0; i < size; ++i) {
    if (i / kBand % every == 0) some.push_back(i);
  }
  return some;
}

// A sample of a map of no more than about side x side pixels, spread over all of it.
Map mosaic(MapPool& pool, const Map& map, int side) {
  int every = 1;
  while (bands(map.H, every).size() * bands(map.W, every).size() > size_t{1} * side * side) ++every;
  return gather(pool, map, bands(map.H, every), bands(map.W, every));
}

class PackedAutoencoder : public Autoencoder {
 public:
  PackedAutoencoder(const AutoencoderFile& file, const AutoencoderOptions& options)
      : Autoencoder(file.config), threads_(options.threads), stages_(options.stages) {
    Team team(threads_);
    const bool bf16 = options.dtype == at::kBFloat16;
    // Without tile registers products of bfloat16 are no faster than twice as many of float32.
    const Precision precision = {.bf16_maps = bf16, .bf16_products = bf16 && active_isa() >= Isa::Amx};
    if (options.encoder) encoder_ = make_encoder(file, precision, arena_, team);
    if (options.decoder) decoder_ = make_decoder(file, precision, arena_, team);
  }

  at::Tensor moments(const at::Tensor& images) const override {
    check(images, "images", 3);
    const int side = static_cast<int>(std::min(images.size(2), images.size(3)));
    DYDIT_USAGE_CHECK(side >= config_.factor(),
                      "images of {} pixels: an autoencoder of factor {} takes {} and more", side,
                      config_.factor(), config_.factor());
    if (!is_tiny()) return apply(*encoder_, images, "image", kSame, kSame);
    return apply(
        *encoder_, images, "image", [](float v) { return .5f * v + .5f; }, kSame);
  }

  at::Tensor decode(const at::Tensor& z) const override {
    check(z, "latents", config_.latent_channels);
    if (!is_tiny()) return apply(*decoder_, z, "latent", kSame, kSame);
    return apply(*decoder_, z, "latent", kTinyClamp, kTinyPixel);
  }

  at::Tensor decode_in_tiles(const at::Tensor& z, int tile) const override {
    check(z, "latents", config_.latent_channels);
    const int h = static_cast<int>(z.size(2)), w = static_cast<int>(z.size(3)),
              most = tile + 2 * decoder_->reach();
    check_memory(std::max(decoder_->bytes(h, w, threads_, Part::Body),
                          decoder_->bytes(most, most, threads_, Part::Rest)),
                 fmt::format("the latent of {} x {}, in tiles,", h, w), "take a smaller one");
    Workspace workspace(threads_);
    at::Tensor images = at::empty({z.size(0), 3, h * config_.factor(), w * config_.factor()});
    for (int64_t b = 0; b < z.size(0); ++b) {
      Map latent = is_tiny() ? to_map(workspace.maps, z, b, kTinyClamp) : to_map(workspace.maps, z, b, kSame);
      Map body = decoder_->run(workspace, std::move(latent), {}, Part::Body);
      const at::Tensor image = images[b];
      fill_in_tiles(workspace, image, body, tile);
      DYDIT_CHECK(at::isfinite(image).all().item<bool>(), "latent {} of the batch: NaN or infinity in a tile",
                  b);
      workspace.maps.give(std::move(body));
    }
    return is_tiny() ? images * 2 - 1 : images;
  }

  double encode_bytes(int height, int width) const override {
    return encoder_->bytes(height, width, threads_);
  }
  double decode_bytes(int height, int width) const override {
    return decoder_->bytes(height, width, threads_);
  }

 private:
  bool is_tiny() const { return config_.kind == AutoencoderKind::Tiny; }

  // One image after another: what is in memory does not grow with the batch.
  template <typename In, typename Out>
  at::Tensor apply(const Network& network, const at::Tensor& x, const char* what, const In& in,
                   const Out& out) const {
    check_memory(network.bytes(static_cast<int>(x.size(2)), static_cast<int>(x.size(3)), threads_),
                 fmt::format("the {} of {} x {}", what, x.size(2), x.size(3)),
                 decoder_ && &network == &*decoder_ ? "take a smaller one, or --vae-tiling approximate"
                                                    : "take a smaller one");
    Workspace workspace(threads_);
    Network::Observer tell;
    if (stages_) {
      tell = [&](const Step& step, const Map& map) {
        if (!step.stage.empty()) stages_(step.stage, to_tensor(map));
      };
    }
    at::Tensor result;
    for (int64_t b = 0; b < x.size(0); ++b) {
      Map map = network.run(workspace, to_map(workspace.maps, x, b, in), tell);
      if (b == 0) result = at::empty({x.size(0), map.C, map.H, map.W});
      if (!to_image(result.data_ptr<float>() + b * result.stride(0), map, out))
        complain(network, workspace, x, b, what, in);
      workspace.maps.give(std::move(map));
    }
    return result;
  }

  // image (3, H, W) <- the decoder's levels of what its body gave.
  void fill_in_tiles(Workspace& workspace, const at::Tensor& image, const Map& body, int tile) const {
    const int reach = decoder_->reach(), most = tile + 2 * reach, factor = config_.factor();
    std::vector<std::vector<Moments>> moments;  // of every step's output
    workspace.maps.give(decoder_->run(
        workspace, mosaic(workspace.maps, body, most),
        [&](const Step&, Map& map) { moments.push_back(map.moments); }, Part::Rest));
    for (int y = 0; y < body.H; y += tile) {
      for (int x = 0; x < body.W; x += tile) {
        const int top = std::max(0, y - reach), left = std::max(0, x - reach),
                  end_y = std::min(y + tile, body.H), end_x = std::min(x + tile, body.W);
        Map part = gather(workspace.maps, body, range(top, std::min(end_y + reach, body.H)),
                          range(left, std::min(end_x + reach, body.W)));
        size_t step = 0;
        Map pixels = decoder_->run(
            workspace, std::move(part), [&](const Step&, Map& map) { map.moments = moments[step++]; },
            Part::Rest);
        const auto core = [&](const at::Tensor& whole, int from_y, int from_x) {
          return whole.slice(1, factor * (y - from_y), factor * (end_y - from_y))
              .slice(2, factor * (x - from_x), factor * (end_x - from_x));
        };
        core(image, 0, 0).copy_(core(to_tensor(pixels)[0], top, left));
        workspace.maps.give(std::move(pixels));
      }
    }
  }

  // Computes image b again to see where it went wrong.
  template <typename In>
  void complain(const Network& network, Workspace& workspace, const at::Tensor& x, int64_t b,
                const char* what, const In& in) const {
    DYDIT_CHECK(at::isfinite(x[b]).all().item<bool>(), "{} {} of the batch holds a NaN or infinity", what, b);
    network.run(workspace, to_map(workspace.maps, x, b, in), [&](const Step& step, const Map& map) {
      DYDIT_CHECK(map.is_finite(), "{} {} of the batch: NaN or infinity, first in {}", what, b, step.name);
    });
  }

  const int threads_;
  const StageObserver stages_;
  cpu::Arena arena_;
  std::optional<Network> encoder_, decoder_;
};

}  // namespace
}  // namespace vae

void Autoencoder::check(const at::Tensor& x, const char* what, int64_t channels) {
  DYDIT_USAGE_CHECK(x.defined() && x.dim() == 4 && x.size(1) == channels && x.scalar_type() == at::kFloat &&
                        x.device().is_cpu() && x.numel() > 0,
                    "{}: expected (B, {}, height, width) in float32 on the CPU, got {}", what, channels,
                    x.defined() ? fmt::format("({}) in {} on {}", fmt::join(x.sizes(), ", "),
                                              c10::toString(x.scalar_type()), x.device().str())
                                : "no tensor");
}

Posterior posterior_of(const at::Tensor& moments, AutoencoderKind kind) {
  constexpr double kLeast = -30, kMost = 20;  // of logvar
  if (kind == AutoencoderKind::Tiny) return {moments, {}};
  const int64_t z = moments.size(1) / 2;
  return {moments.slice(1, 0, z).contiguous(), moments.slice(1, z).clamp(kLeast, kMost)};
}

std::unique_ptr<const Autoencoder> make_autoencoder(const AutoencoderFile& file,
                                                    const AutoencoderOptions& options) {
  const auto need = [&](bool wanted, bool there, const char* half) {
    DYDIT_CHECK(!wanted || there, "{}: holds no {}; take a file that has both halves", file.path.string(),
                half);
  };
  need(options.encoder, file.has_encoder, "encoder");
  need(options.decoder, file.has_decoder, "decoder");
  if (options.device) return vae::make_torch_autoencoder(file, options);
  return std::make_unique<vae::PackedAutoencoder>(file, options);
}

}  // namespace dydit
