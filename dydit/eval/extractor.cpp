#include "dydit/eval/extractor.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <ATen/ATen.h>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/recognize.h"
#include "dydit/io/safetensors.h"
#include "dydit/io/text.h"
#include "dydit/io/torch_file.h"
#include "dydit/model/checkpoint.h"
#include "dydit/model/recipe.h"

namespace dydit {
namespace {

using namespace eval;

constexpr std::string_view kRecipe = "recipe:inception";

const char* what_of(ExtractorKind kind) {
  switch (kind) {
    case ExtractorKind::Inception:
      return "the FID Inception (pt_inception-2015-12-05)";
    case ExtractorKind::Lite0:
      return "EfficientNet-Lite0";
    case ExtractorKind::Resnet56:
      return "ResNet-56 of CIFAR-10";
    case ExtractorKind::Resnet20:
      return "ResNet-20 of CIFAR-10";
  }
  return "";
}

// Where a wrapper has named everything below it.
constexpr std::string_view kModule = "module.";

std::map<std::string, at::Tensor> tensors_of(const TensorViews& views,
                                             const std::shared_ptr<const void>& memory) {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, view] : views)
    tensors.emplace(name.starts_with(kModule) ? name.substr(kModule.size()) : name, to_tensor(view, memory));
  return tensors;
}

struct ReadWeights {
  std::map<std::string, at::Tensor> tensors;
  std::string sha256;
};

ReadWeights read_weights(const std::filesystem::path& path, ExtractorKind kind) {
  const std::string name = path.string();
  const auto file = MappedFile::open(path);
  ReadWeights read;
  read.sha256 = sha256_hex(file->bytes());
  const FileKind found = sniff_file_kind(file->bytes());
  if (found == FileKind::Safetensors) {
    read.tensors = tensors_of(parse_safetensors(file->bytes(), name).tensors, file);
  } else if ((found == FileKind::TorchZip || found == FileKind::TorchLegacy) &&
             recognize_file(file->bytes(), path)->is_torch) {
    read.tensors = tensors_of(preferred_weights(parse_torch_checkpoint(file->bytes(), name)).tensors, file);
  } else {
    refuse_file(file->bytes(), path,
                std::string("not the weights of ") + what_of(kind) + "; wanted a torch file or safetensors");
  }
  if (kind == ExtractorKind::Inception) {
    DYDIT_CHECK(!read.tensors.contains("AuxLogits.fc.weight"),
                "{}: is torchvision's Inception-v3, whose features are others; wanted {}", name,
                what_of(kind));
  }
  return read;
}

// See tools/ and the vectors that were made with them: a function of name and index.
ReadWeights inception_by_recipe() {
  ReadWeights read;
  read.sha256 = sha256_hex(bytes_of(kRecipe));
  for (const auto& [name, shape] : inception_tensors()) {
    const at::Tensor u = recipe_uniform(name, shape);
    const auto is = [&](std::string_view end) { return name.ends_with(end); };
    double fan_in = 1;
    for (size_t i = 1; i < shape.size(); ++i) fan_in *= static_cast<double>(shape[i]);
    read.tensors[name] = is("bn.weight") || is("bn.running_var") ? u + 0.5
                         : is("bn.bias") || is("bn.running_mean")
                             ? (u * 2 - 1) * 0.25
                             : (u * 2 - 1) * (is("fc.bias")     ? 0.5
                                              : is("fc.weight") ? static_cast<float>(0.05)
                                                                : static_cast<float>(std::sqrt(6 / fan_in)));
  }
  return read;
}

std::unique_ptr<FeatureNetwork> make_network(ExtractorKind kind, NetworkWeights weights, bool bf16) {
  switch (kind) {
    case ExtractorKind::Inception:
      return make_inception(std::move(weights), bf16);
    case ExtractorKind::Lite0:
      return make_lite0(std::move(weights), bf16);
    case ExtractorKind::Resnet56:
      return make_cifar_resnet(std::move(weights), 9, bf16);
    case ExtractorKind::Resnet20:
      return make_cifar_resnet(std::move(weights), 3, bf16);
  }
  return nullptr;
}

// (3, side, side) in [-1, 1] -> pixels.
Image image_of(const at::Tensor& values) {
  const at::Tensor planar = values.contiguous();
  const int side = static_cast<int>(planar.size(1)), plane = side * side;
  Image image{side, side, 3, std::vector<uint8_t>(static_cast<size_t>(planar.numel()))};
  const float* from = planar.data_ptr<float>();
  for (int i = 0; i < plane; ++i) {
    for (int c = 0; c < 3; ++c)
      image.pixels[3 * i + c] =
          static_cast<uint8_t>(std::lround(std::clamp(127.5f * (from[c * plane + i] + 1), 0.0f, 255.0f)));
  }
  return image;
}

// (H W, C)
at::Tensor positions_of(const Map& map) {
  const at::Tensor positions = at::empty({int64_t{map.H} * map.W, map.C});
  float* to = positions.data_ptr<float>();
  for (int i = 0; i < map.H * map.W; ++i, to += map.C)
    std::copy_n(map.as<const float>() + map.at(0, i), map.C, to);
  return positions;
}

}  // namespace

Extractor::Extractor(ExtractorKind kind, const std::filesystem::path& weights, ResizeRule rule, bool bf16,
                     int threads)
    : kind_(kind), rule_(rule), team_(threads) {
  if (kind == ExtractorKind::Lite0) rule_ = ResizeRule::Lite0;
  if (kind == ExtractorKind::Resnet56 || kind == ExtractorKind::Resnet20) rule_ = ResizeRule::Resnet;
  const bool by_recipe = kind == ExtractorKind::Inception && weights == kRecipe;
  ReadWeights read = by_recipe ? inception_by_recipe() : read_weights(weights, kind);
  sha256_ = read.sha256;
  network_ =
      make_network(kind, NetworkWeights(std::move(read.tensors), weights.string(), what_of(kind)), bf16);
  sizes_ = network_->sizes();
  for (int i = 0; i < team_.threads(); ++i) workspaces_.push_back(std::make_unique<FeatureWorkspace>());
}

ImageFeatures Extractor::make_room(int64_t images) const {
  ImageFeatures room;
  room.features = at::empty({images, sizes_.features});
  room.logits = at::empty({images, sizes_.logits});
  if (sizes_.spatial > 0) room.spatial = at::empty({images, sizes_.spatial});
  return room;
}

void Extractor::run(const Image& image, const ImageFeatures& into, int64_t row, FeatureWorkspace& workspace,
                    const StageObserver& observe) const {
  HeldMap input(workspace.maps, sizes_.side, sizes_.side, 3);
  to_network(image, rule_, sizes_.side, input->as<float>());
  const auto at_row = [&](const at::Tensor& tensor) {
    return tensor.defined() ? tensor.data_ptr<float>() + row * tensor.size(1) : nullptr;
  };
  network_->run(workspace, std::move(input),
                {at_row(into.features), at_row(into.logits), at_row(into.spatial)}, observe);
}

ImageFeatures Extractor::extract(std::span<const Image> images) {
  return extract(static_cast<int>(images.size()), [&](int i) { return images[static_cast<size_t>(i)]; });
}

ImageFeatures Extractor::extract(int count, const std::function<Image(int)>& image) {
  const ImageFeatures all = make_room(count);
  team_.run(count,
            [&](int i, int thread) { run(image(i), all, i, *workspaces_[static_cast<size_t>(thread)], {}); });
  return all;
}

at::Tensor Extractor::stage(std::string_view name, const at::Tensor& images) {
  DYDIT_CHECK(images.dim() == 4 && images.size(1) == 3 && images.size(2) == sizes_.side &&
                  images.size(3) == sizes_.side,
              "{} takes RGB images of {}x{} pixels", what_of(kind_), sizes_.side, sizes_.side);
  const ImageFeatures unused = make_room(images.size(0));
  std::vector<at::Tensor> maps(static_cast<size_t>(images.size(0)));
  team_.run(static_cast<int>(images.size(0)), [&](int i, int thread) {
    run(image_of(images[i]), unused, i, *workspaces_[static_cast<size_t>(thread)],
        [&](const std::string& stage, const Map& map) {
          if (stage == name) maps[static_cast<size_t>(i)] = positions_of(map);
        });
  });
  return at::stack(maps);
}

ImageFeatures Extractor::extract(const Image& image, const StageObserver& observe) {
  const ImageFeatures one = make_room(1);
  run(image, one, 0, *workspaces_[0], observe);
  return one;
}

}  // namespace dydit
