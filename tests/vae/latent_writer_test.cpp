// Packed latents are those of the autoencoder, rounded once, and the same bytes whatever the batch, the
// threads, the processes and the interruptions.
#include "dydit/vae/latent_writer.h"

#include <atomic>
#include <cmath>
#include <fstream>
#include <map>
#include <memory>
#include <thread>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "dydit/data/latent_dataset.h"
#include "dydit/data/loader.h"
#include "dydit/io/latents_index.h"
#include "tests/support/files.h"
#include "tests/support/noise_images.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::contents;
using test::expect_error;
using test::NoiseImages;
using test::TemporaryFolder;

// Two channels at half the side, of which the second has a logvar that is cut at both ends.
class FakeAutoencoder final : public Autoencoder {
 public:
  explicit FakeAutoencoder(AutoencoderKind kind = AutoencoderKind::Kl, float factor = 5)
      : Autoencoder(config_of(kind)), factor_(factor) {}

  at::Tensor moments(const at::Tensor& images) const override {
    ++calls;
    const at::Tensor small = at::avg_pool2d(images, 2) * factor_;
    const at::Tensor mean = at::stack({small.select(1, 0), small.select(1, 1) + small.select(1, 2)}, 1);
    if (config_.kind == AutoencoderKind::Tiny) return mean;
    return at::cat({mean, at::stack({small.select(1, 2), small.select(1, 0) * 20}, 1)}, 1);
  }
  at::Tensor decode(const at::Tensor& z) const override {
    return at::upsample_nearest2d(at::cat({z, z.narrow(1, 0, 1)}, 1),
                                  std::vector<int64_t>{z.size(2) * 2, z.size(3) * 2}) /
           factor_;
  }
  at::Tensor decode_in_tiles(const at::Tensor& z, int) const override { return decode(z); }
  double encode_bytes(int, int) const override { return 0; }
  double decode_bytes(int, int) const override { return 0; }

  mutable std::atomic<int> calls = 0;

 private:
  static AutoencoderConfig config_of(AutoencoderKind kind) {
    AutoencoderConfig config;
    config.kind = kind;
    config.latent_channels = 2;
    config.channels = {8, 8};
    config.scale = {0.25, 0.5, {}, {}};
    return config;
  }
  float factor_;
};

LatentWriteOptions options_of(const fs::path& folder) {
  return {
      .folder = folder, .shard_size = 5, .batch = 4, .source = "noise", .vae_sha256 = std::string(64, 'a')};
}

// Name -> bytes of all files of a folder, hidden ones too.
std::map<std::string, std::string> files_of(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder))
    files[entry.path().filename().string()] = contents(entry.path());
  return files;
}

TEST(LatentWriter, TrainingBatchIsTheDirectEncodingRoundedToFloat16) {
  const TemporaryFolder folder;
  const NoiseImages images;
  const FakeAutoencoder autoencoder;
  write_latents(images, autoencoder, options_of(folder / "set"));
  const LatentSource set = open_latents(folder / "set", {});
  EXPECT_EQ(set.info.channels, 2);
  EXPECT_EQ(set.info.side, 4);
  EXPECT_EQ(set.info.flips, 2);
  EXPECT_EQ(set.classes.names, images.class_names());
  for (int64_t i = 0; i < images.size(); ++i) {
    for (const bool mirrored : {false, true}) {
      at::Tensor image = at::empty({1, 3, 8, 8});
      images.read_pixels(i, mirrored, image.data_ptr<float>());
      const Posterior direct = autoencoder.encode(image);
      at::Tensor mean = at::empty_like(direct.mean), std = at::empty_like(direct.mean);
      set.read(i, mirrored, {mean.data_ptr<float>(), 32}, {std.data_ptr<float>(), 32});
      EXPECT_TRUE(at::equal(mean, direct.mean.to(at::kHalf).to(at::kFloat)));
      EXPECT_TRUE(at::allclose(std, (direct.logvar.to(at::kHalf).to(at::kFloat) / 2).exp(), 1e-6, 0));
    }
    EXPECT_EQ(set.labels[static_cast<size_t>(i)], images.label(i));
  }
  const auto data = Dataset::load(folder / "set", {});
  const Batch batch =
      Loader(*data, {.seed = 3, .global_batch = 4, .first = 0, .count = 4, .flip = false}, 0).next();
  const int64_t first = epoch_order(12, 3, 0)[0];
  std::vector<float> one(32);
  data->read_values(first, {.seed = 3}, one.data());
  EXPECT_EQ(std::vector<float>(batch.images.begin(), batch.images.begin() + 32), one);
}

TEST(LatentWriter, SameBytesWhateverBatchThreadsAndProcesses) {
  const TemporaryFolder folder;
  const NoiseImages images;
  const FakeAutoencoder autoencoder;
  write_latents(images, autoencoder, options_of(folder / "one"));
  const auto wanted = files_of(folder / "one");
  EXPECT_EQ(wanted.size(), 4u);  // shards of 5, 5 and 2 images, and the index

  LatentWriteOptions other = options_of(folder / "other");
  other.batch = 1;
  other.threads = 3;
  write_latents(images, autoencoder, other);
  EXPECT_EQ(files_of(folder / "other"), wanted);

  // Two processes: the second one waits for the first one's folder, and the first one for the second one's
  // shard.
  const LatentWriteOptions shared = options_of(folder / "shared");
  const auto barrier = [&, met = std::make_shared<std::atomic<int>>(0)] {
    const int turn = met->fetch_add(1) / 2;
    while (met->load() < 2 * (turn + 1)) std::this_thread::yield();
  };
  std::thread second([&] { write_latents(images, autoencoder, shared, {1, 2, barrier}); });
  const LatentWriteReport report = write_latents(images, autoencoder, shared, {0, 2, barrier});
  second.join();
  EXPECT_EQ(report.written, 2);
  EXPECT_EQ(files_of(folder / "shared"), wanted);
}

TEST(LatentWriter, AnInterruptedRunGoesOnToTheSameBytes) {
  const TemporaryFolder folder;
  const NoiseImages images;
  const FakeAutoencoder autoencoder;
  write_latents(images, autoencoder, options_of(folder / "whole"));
  const LatentWriteOptions options = options_of(folder / "cut");
  CancelFlag cancel = false;
  const auto stop = [&](const Progress& progress) { cancel = progress.done >= 9; };
  EXPECT_THROW(write_latents(images, autoencoder, options, {}, stop, &cancel), Cancelled);
  EXPECT_EQ(files_of(folder / "cut").size(), 1u);
  expect_error([&] { Dataset::load(folder / "cut", {}); }, "is not finished: it has 1 shards");
  std::ofstream(folder / "cut/.latents-00001-of-00003.safetensors.tmp-1-0") << "of a run that was killed";
  autoencoder.calls = 0;
  const LatentWriteReport report = write_latents(images, autoencoder, options);
  EXPECT_EQ(report.kept, 1);
  EXPECT_EQ(report.written, 2);
  EXPECT_EQ(autoencoder.calls, 2 * 3);  // batches of 4, 1 and 2 images, both flips
  EXPECT_EQ(files_of(folder / "cut"), files_of(folder / "whole"));
  EXPECT_EQ(write_latents(images, autoencoder, options).kept, 3);
  EXPECT_EQ(files_of(folder / "cut"), files_of(folder / "whole"));
}

TEST(LatentWriter, IndexSaysWhatWasEncodedAndHow) {
  const TemporaryFolder folder;
  const NoiseImages images;
  const FakeAutoencoder autoencoder;
  const LatentWriteReport report = write_latents(images, autoencoder, options_of(folder / "set"));
  const json index = json::parse(contents(folder / "set/latents.json"));
  const json wanted = {{"dydit_latents", "1"},
                       {"images", "12"},
                       {"shards", "3"},
                       {"flips", "2"},
                       {"image_side", "8"},
                       {"crop", "adm-center"},
                       {"vae_kind", "AutoencoderKL"},
                       {"vae_sha256", std::string(64, 'a')},
                       {"scaling_factor", "0.25"},
                       {"shift_factor", "0.5"},
                       {"encode_dtype", "float32"},
                       {"class_names", R"(["class0","class1","class2","class3"])"}};
  for (const auto& [key, value] : wanted.items()) EXPECT_EQ(index[key], value) << key;
  const json source = json::parse(index["source"].get<std::string>());
  EXPECT_EQ(source["name"], "noise");
  EXPECT_EQ(source["images"], 12);
  EXPECT_EQ(source["sha256"], images.list_sha256());
  EXPECT_EQ(index["files"].size(), 3u);
  EXPECT_EQ(index["files"][2]["images"], 2);
  const std::string name = "latents-00002-of-00003.safetensors";
  EXPECT_EQ(index["files"][2]["sha256"], sha256_hex(test::bytes_of(contents(folder / ("set/" + name)))));

  // The deviation of what is drawn: of the means, and the mean variance.
  std::vector<at::Tensor> means, variances;
  const LatentSource set = open_latents(folder / "set", {});
  for (int64_t i = 0; i < 24; ++i) {
    at::Tensor mean = at::empty({2, 16}), std = at::empty({2, 16});
    set.read(i / 2, i % 2 == 1, {mean.data_ptr<float>(), 32}, {std.data_ptr<float>(), 32});
    means.push_back(mean);
    variances.push_back(std.square());
  }
  const at::Tensor mean = at::cat(means, 1).to(at::kDouble), variance = at::cat(variances, 1).to(at::kDouble);
  for (int64_t c = 0; c < 2; ++c) {
    EXPECT_NEAR(report.channel_mean[c], mean[c].mean().item<double>(), 1e-9);
    const double both = mean[c].var(/*unbiased=*/false).item<double>() + variance[c].mean().item<double>();
    EXPECT_NEAR(report.channel_std[c], std::sqrt(both), 1e-5 * std::sqrt(both));
  }
  EXPECT_EQ(index["channel_mean"], json(report.channel_mean));
}

TEST(LatentWriter, NormalisesByTheSet) {
  const TemporaryFolder folder;
  const NoiseImages images;
  const FakeAutoencoder autoencoder(AutoencoderKind::Tiny);
  LatentWriteOptions options = options_of(folder / "set");
  options.normalize = true;
  options.flips = false;
  options.dtype = Dtype::F32;
  const LatentWriteReport report = write_latents(images, autoencoder, options);
  const LatentSource set = open_latents(folder / "set", {});
  EXPECT_FALSE(set.info.spread);
  EXPECT_EQ(set.info.flips, 1);
  EXPECT_EQ(set.info.dtype, Dtype::F32);
  EXPECT_EQ(set.info.scale.mean, report.channel_mean);
  EXPECT_EQ(set.info.scale.std, report.channel_std);
  EXPECT_EQ(set.info.scale.scaling, 1);
  EXPECT_EQ(set.info.scale.shift, 0);
  const auto data = Dataset::load(folder / "set", {});
  at::Tensor all = at::empty({12, 2, 16});
  for (int64_t i = 0; i < 12; ++i) data->read_values(i, {}, all[i].data_ptr<float>());
  EXPECT_TRUE(at::allclose(all.mean(std::vector<int64_t>{0, 2}), at::zeros({2}), 0, 1e-5));
  EXPECT_TRUE(at::allclose(all.var(std::vector<int64_t>{0, 2}, /*unbiased=*/false), at::ones({2}), 1e-4));
}

TEST(LatentWriter, RefusesWhatCannotBeMeant) {
  const TemporaryFolder folder;
  const NoiseImages images;
  const auto refused = [&](const std::string& part, const FakeAutoencoder& autoencoder,
                           const std::function<void(LatentWriteOptions&)>& change = {}) {
    LatentWriteOptions options = options_of(folder / "set");
    if (change) change(options);
    expect_error([&] { write_latents(images, autoencoder, options); }, part);
  };
  refused("image 0: its latent holds ", FakeAutoencoder(AutoencoderKind::Kl, 1e6));
  refused("float16 at most 65504; take --dtype f32", FakeAutoencoder(AutoencoderKind::Kl, 1e6));
  refused("image 0: its latent holds NaN or infinity; is the autoencoder right?",
          FakeAutoencoder(AutoencoderKind::Kl, NAN));
  refused("the same in all latents; it cannot be normalised", FakeAutoencoder(AutoencoderKind::Tiny, 0),
          [](LatentWriteOptions& options) { options.normalize = true; });
  fs::remove_all(folder / "set");
  refused("shards of 0 images, batches of 4: 1 or more", FakeAutoencoder(),
          [](LatentWriteOptions& options) { options.shard_size = 0; });

  write_latents(images, FakeAutoencoder(), options_of(folder / "set"));
  refused("was packed otherwise: its vae_sha256 is", FakeAutoencoder(),
          [](LatentWriteOptions& options) { options.vae_sha256 = "b"; });
  refused("was packed with another --dtype", FakeAutoencoder(),
          [](LatentWriteOptions& options) { options.dtype = Dtype::BF16; });
  refused("is of another set, of 3 shards where these images make 2", FakeAutoencoder(),
          [](LatentWriteOptions& options) { options.shard_size = 6; });
  write_latents(images, FakeAutoencoder(AutoencoderKind::Kl, 1e6), [&] {
    LatentWriteOptions options = options_of(folder / "wide");
    options.dtype = Dtype::F32;
    return options;
  }());
}

TEST(LatentWriter, RefusesImagesThatTheAutoencoderDoesNotDivide) {
  class Odd final : public Dataset {
   public:
    explicit Odd(int side, int channels) {
      side_ = side;
      channels_ = channels;
    }
    int64_t size() const override { return 1; }
    int label(int64_t) const override { return 0; }
    void read(int64_t, std::span<uint8_t>) const override {}
  };
  const TemporaryFolder folder;
  expect_error([&] { write_latents(Odd(9, 3), FakeAutoencoder(), options_of(folder / "set")); },
               "images of 9x9: this autoencoder takes sides that 2 divides; give --image-size 8");
  expect_error([&] { write_latents(Odd(8, 1), FakeAutoencoder(), options_of(folder / "set")); },
               "images of 1 channels: an autoencoder takes 3");
}

TEST(LatentWriter, PsnrIsThatOfTheDecodedMeans) {
  class Flat final : public Dataset {
   public:
    Flat() {
      side_ = 4;
      channels_ = 3;
    }
    int64_t size() const override { return 8; }
    int label(int64_t) const override { return 0; }
    void read(int64_t index, std::span<uint8_t> out) const override {  // gray, and then red
      for (size_t i = 0; i < out.size(); ++i) out[i] = index == 0 || i < 16 ? 255 : 0;
    }
  };
  const std::vector<double> psnr = reconstruction_psnr(Flat(), FakeAutoencoder(), 2);
  ASSERT_EQ(psnr.size(), 2u);
  // The latent of white is (5, 10), which decodes to white; of red (5, -10), to (1, -2, 1): one colour of
  // three is wrong.
  EXPECT_TRUE(std::isinf(psnr[0]));
  EXPECT_NEAR(psnr[1], 10 * std::log10(4 / (4.0 / 3)), 1e-4);
}

}  // namespace
}  // namespace dydit
