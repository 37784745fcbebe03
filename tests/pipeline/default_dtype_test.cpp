// Nothing depends on the type that new tensors have by default: a notebook may have set it to float64.
#include "tests/support/default_dtype.h"

#include <optional>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/eval/loss.h"
#include "dydit/model/edit.h"
#include "dydit/pipeline/generate.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"
#include "tests/support/noise_images.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::DoubleByDefault;

// What `make` gives with either default.
template <typename Make>
auto both(const Make& make) {
  auto single = make();
  const DoubleByDefault scope;
  return std::pair{std::move(single), make()};
}

std::vector<at::Tensor> images_of(const Checkpoint& checkpoint, GenerateOptions options) {
  options.num_images = 2;
  options.num_steps = 3;
  options.token_map = true;
  options.preview_every = 1;
  std::vector<at::Tensor> tensors;
  generate(checkpoint, options,
           {.on_sample =
                [&](GeneratedSample&& sample) {
                  tensors.push_back(sample.sample);
                  if (sample.token_share.defined()) tensors.push_back(sample.token_share);
                },
            .on_progress = {},
            .on_preview = [&](const Preview& preview) { tensors.push_back(preview.x0.clone()); }});
  return tensors;
}

TEST(DefaultDtype, ChangesNoImageOfALoadedModel) {
  for (const EngineKind engine : {EngineKind::Cpu, EngineKind::Reference}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      for (const NoiseKind noise : {NoiseKind::Philox, NoiseKind::Torch}) {
        for (const SamplerKind sampler : {SamplerKind::Ddpm, SamplerKind::Dpm}) {
          const auto [single, with_double] = both([&] {
            const Checkpoint checkpoint = load_checkpoint(test::golden_path("model.safetensors"));
            GenerateOptions options;
            options.sampler = {sampler, 0};
            options.noise = noise;
            options.dtype = dtype;
            options.engine = engine;
            return images_of(checkpoint, options);
          });
          ASSERT_EQ(single.size(), with_double.size());
          for (size_t i = 0; i < single.size(); ++i) {
            EXPECT_EQ(with_double[i].scalar_type(), at::kFloat);
            EXPECT_TRUE(at::equal(single[i], with_double[i])) << kEngineNames[engine] << ", tensor " << i;
          }
        }
      }
    }
  }
}

TEST(DefaultDtype, ChangesNoPlan) {
  const Checkpoint checkpoint = test::random_checkpoint(test::tiny_config());
  const auto [single, with_double] = both([&] {
    return make_width_plan(checkpoint, std::vector<int>{3, 500, 998}, Mode::Dynamic);
  });
  for (size_t s = 0; s < single.steps.size(); ++s)
    EXPECT_TRUE(single.steps[s].blocks == with_double.steps[s].blocks);
}

TEST(DefaultDtype, ChangesNoModelThatIsMadeOrWritten) {
  const test::TemporaryFolder folder;
  int number = 0;
  const auto [single, with_double] = both([&] {
    const Checkpoint checkpoint =
        reorder_by_importance(add_routers(init_checkpoint(test::static_config(), 3), {}, 4));
    const auto path = folder / (std::to_string(number++) + ".safetensors");
    save_checkpoint(path, checkpoint, at::kBFloat16);
    save_torch_checkpoint(path.string() + ".pt", checkpoint, at::kFloat);
    EXPECT_EQ(load_checkpoint(path.string() + ".pt").weights.size(), checkpoint.weights.size());
    return load_checkpoint(path);
  });
  for (const auto& [name, tensor] : single.weights) {
    EXPECT_EQ(with_double.weights.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(with_double.weights.at(name), tensor)) << name;
  }
}

TEST(DefaultDtype, ChangesNoLoss) {
  DiTConfig config = test::tiny_config();
  config.in_channels = 3;
  for (const EngineKind engine : {EngineKind::Cpu, EngineKind::Reference}) {
    const auto [single, with_double] = both([&] {
      return evaluate_loss(test::random_checkpoint(config), test::NoiseImages(), {.engine = engine});
    });
    for (size_t d = 0; d < single.size(); ++d) {
      EXPECT_EQ(single[d].mse, with_double[d].mse);
      EXPECT_EQ(single[d].vb, with_double[d].vb);
      EXPECT_EQ(single[d].tokens, with_double[d].tokens);
    }
  }
}

}  // namespace
}  // namespace dydit
