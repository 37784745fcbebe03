// Recorded features of networks: the CIFAR ResNets and EfficientNet-Lite0 from their weights, the FID
// Inception from weights by recipe.
#include <array>
#include <filesystem>

#include <ATen/ATen.h>

#include "dydit/base/error.h"
#include "dydit/data/crop.h"
#include "dydit/eval/extractor.h"
#include "extractor_flags.h"
#include "verify.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr double kFeatureTolerance = 1e-5, kInceptionTolerance = 1e-4;
constexpr int kCorner = 12;  // pixels of the resized image's recorded corners

// images (n, H, W, 3) uint8.
std::vector<Image> images_of(const Reference& reference, const std::string& name) {
  const at::Tensor all = reference.at(name).contiguous();
  DYDIT_CHECK(all.dim() == 4 && all.size(3) == 3 && all.scalar_type() == at::kByte,
              "{}: {} is no batch of images (n, height, width, 3) of bytes", reference.path(), name);
  std::vector<Image> images;
  const int64_t bytes = all[0].numel();
  for (int64_t i = 0; i < all.size(0); ++i) {
    const uint8_t* from = all.const_data_ptr<uint8_t>() + i * bytes;
    images.push_back({static_cast<int>(all.size(1)), static_cast<int>(all.size(2)), 3, {from, from + bytes}});
  }
  return images;
}

// The image that every language can make.
Image formula_image() {
  constexpr int kSide = 512;
  Image image{kSide, kSide, 3, {}};
  for (int y = 0; y < kSide; ++y)
    for (int x = 0; x < kSide; ++x)
      for (int c = 0; c < 3; ++c)
        image.pixels.push_back(static_cast<uint8_t>((x * x * (c + 1) + 37 * y * (3 - c) + x * y) >> 6));
  return image;
}

// Weights beside the vectors, in a folder "data" above them, or fetched.
fs::path weights_near(const Reference& reference, ExtractorKind kind) {
  const fs::path here = fs::absolute(reference.path()).parent_path();
  for (const fs::path& folder : {here, here / "data", here.parent_path() / "data",
                                 here.parent_path().parent_path() / "data", fs::path(kFetchedWeights)}) {
    const fs::path found = fs::is_directory(folder) ? find_extractor_weights(kind, folder) : fs::path();
    if (!found.empty()) return found;
  }
  return {};
}

at::Tensor mean_of(const eval::Map& map) {
  at::Tensor mean = at::empty({map.C});
  eval::mean_of_positions(map, mean.data_ptr<float>());
  return mean;
}

// Of the resized image (3, side, side): the corner at its beginning or its end.
at::Tensor corner_of(const Image& image, int side, bool end) {
  at::Tensor resized = at::empty({side, side, 3});
  resize_float(image, ResizeRule::Adm, side, resized.data_ptr<float>());
  const int64_t first = end ? side - kCorner : 0;
  return resized.permute({2, 0, 1}).slice(1, first, first + kCorner).slice(2, first, first + kCorner);
}

void verify_set(const Reference& reference, const std::string& set, const std::vector<Image>& images,
                int threads, VerifyReport& report) {
  const auto load = [&](ResizeRule rule) {
    return Extractor(ExtractorKind::Inception, "recipe:inception", rule, /*bf16=*/false, threads);
  };
  Extractor adm = load(ResizeRule::Adm), clean = load(ResizeRule::CleanFid);
  std::vector<at::Tensor> heads, tails, f64, f192, f768;
  for (const Image& image : images) {
    heads.push_back(corner_of(image, adm.sizes().side, false));
    tails.push_back(corner_of(image, adm.sizes().side, true));
    adm.extract(image, [&](const std::string& stage, const eval::Map& map) {
      const at::Tensor mean = mean_of(map);
      if (stage == "MaxPool_1") f64.push_back(mean);
      if (stage == "MaxPool_2") f192.push_back(mean);
      if (stage == "Mixed_6e") f768.push_back(mean);
    });
  }
  const auto compare = [&](const std::string& name, const at::Tensor& got, double limit) {
    report.compare(set + "." + name, got, reference.at(set + "." + name), limit);
  };
  compare("resized_head", at::stack(heads), 0);
  compare("resized_tail", at::stack(tails), 0);
  const ImageFeatures got = adm.extract(images);
  compare("f64", at::stack(f64), kInceptionTolerance);
  compare("f192", at::stack(f192), kInceptionTolerance);
  compare("f768", at::stack(f768), kInceptionTolerance);
  compare("f2048", got.features, kInceptionTolerance);
  compare("logits_unbiased", got.logits, kInceptionTolerance);
  const std::vector<float>& bias = adm.logit_bias();
  compare("logits", got.logits + at::tensor(bias), kInceptionTolerance);
  // What follows was recorded on images that were resized as clean-fid does.
  const ImageFeatures cleanly = clean.extract(images);
  compare("clean_fid_2048", cleanly.features, kInceptionTolerance);
  compare("sfid", cleanly.spatial, kInceptionTolerance);
  if (reference.has("means.Mixed_7c") && set == "a") {  // of the first image
    std::map<std::string, at::Tensor> means = {{"AvgPool", cleanly.features[0]}};
    clean.extract(images[0],
                  [&](const std::string& stage, const eval::Map& map) { means[stage] = mean_of(map); });
    for (const std::string& name : reference.names()) {
      constexpr std::string_view kMeans = "means.";
      if (!name.starts_with(kMeans)) continue;
      const auto found = means.find(name.substr(kMeans.size()));
      DYDIT_CHECK(found != means.end(), "{}: {} is no part of the FID network", reference.path(), name);
      report.compare(name, found->second, reference.at(name), kInceptionTolerance);
    }
  }
  compare("pytorch_fid_2048", load(ResizeRule::PytorchFid).extract(images).features, kInceptionTolerance);
}

}  // namespace

void verify_inception(const Reference& reference, int threads, VerifyReport& report) {
  for (const std::string& name : reference.names()) {
    constexpr std::string_view kImages = ".images";
    if (name.ends_with(kImages)) {
      const std::string set = name.substr(0, name.size() - kImages.size());
      verify_set(reference, set, images_of(reference, name), threads, report);
    }
  }
  if (reference.has("formula.f2048")) verify_set(reference, "formula", {formula_image()}, threads, report);
}

void verify_extractors(const Reference& reference, int threads, VerifyReport& report) {
  const std::vector<Image> images = images_of(reference, "images");
  for (const std::string& name : kExtractorNames.names()) {
    const ExtractorKind kind = kExtractorNames.at(name);
    if (!reference.has(name + "_features")) continue;
    if (reference.has(name + "_resized_0")) {
      constexpr int kSide = 224;
      const Image small = resize(images[0], kSide, kSide, Filter::Bicubic, {0, 0, kSide, kSide});
      const at::Tensor got =
          at::tensor(at::ArrayRef<uint8_t>(small.pixels)).view({kSide, kSide, 3}).permute({2, 0, 1});
      report.count(name + "_resized_0", at::ne(got, reference.at(name + "_resized_0")).sum().item<int64_t>(),
                   got.numel());
    }
    const fs::path weights = weights_near(reference, kind);
    if (weights.empty()) {
      report.skip(
          name, extractor_file_names(kind)[0] + " lies neither beside the vectors nor in " + kFetchedWeights);
      continue;
    }
    Extractor extractor(kind, weights, ResizeRule::Adm, /*bf16=*/false, threads);
    const ImageFeatures got = extractor.extract(images);
    report.compare(name + "_features", got.features, reference.at(name + "_features"), kFeatureTolerance);
    report.compare(name + "_logits", got.logits, reference.at(name + "_logits"), kFeatureTolerance);
  }
}

}  // namespace dydit
