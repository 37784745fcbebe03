// The exact noise of a run: which numbers each image and each step draws.
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/base/noise.h"
#include "dydit/pipeline/generate.h"
#include "tests/support/engines.h"
#include "tests/support/random_model.h"
#include "tests/support/sampling.h"

namespace dydit {
namespace {

using test::random_checkpoint;
using test::tiny_config;

// fill_normal's draw of an image.
at::Tensor normals(const DiTConfig& config, uint64_t seed, int image, int draw) {
  at::Tensor values = at::empty({1, config.in_channels, config.input_size, config.input_size}, at::kFloat);
  fill_normal({values.data_ptr<float>(), static_cast<size_t>(values.numel())}, seed, image, draw);
  return values;
}

// Image `index` of an unguided run by hand, each draw by its number: 0 the start, k + 1 of the k-th step.
at::Tensor image_by_hand(const Checkpoint& checkpoint, const GenerateOptions& options, int index) {
  const DiTConfig& config = checkpoint.config;
  const std::vector<double> timesteps = run_spacing(options, {}).timesteps;
  const DiffusionTables tables = make_diffusion_tables(test::steps_of_table(timesteps));
  const test::EngineOf engine(options.engine, checkpoint, {}, Mode::Dynamic, timesteps);
  at::Tensor x = normals(config, options.seed, index, 0), x0 = at::empty_like(x);
  const int steps = tables.num_steps();
  for (int k = 0; k < steps; ++k) {
    const int step = steps - 1 - k;
    const at::Tensor out = engine.forward(x, step, {options.label(index)}).out;
    test::reverse_step(make_solver_step(tables, options.sampler, step), x, out,
                       normals(config, options.seed, index, k + 1), x0);
  }
  return x[0];
}

TEST(Generate, DrawsEveryNoiseOfAnImageByItsNumber) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  for (const SamplerOptions& sampler :
       {SamplerOptions{SamplerKind::Ddpm, 0}, SamplerOptions{SamplerKind::Ddim, 0},
        SamplerOptions{SamplerKind::Ddim, 0.7f}, SamplerOptions{SamplerKind::Ddim, 1},
        SamplerOptions{SamplerKind::Dpm, 0}}) {
    for (const int preview_every : {0, 2}) {
      GenerateOptions options;
      options.classes = {3, 0, 4};
      options.num_images = 4;
      options.seed = 17;
      options.num_steps = 5;
      options.batch = 3;  // image 3 is row 0 of its batch
      options.cfg_scale = 1;
      options.sampler = sampler;
      options.preview_every = preview_every;
      std::vector<at::Tensor> got;
      generate(
          checkpoint, options,
          {.on_sample = [&](GeneratedSample&& sample) { got.push_back(sample.sample); }, .on_progress = {}});
      ASSERT_EQ(got.size(), 4u);
      for (int i = 0; i < 4; ++i)
        EXPECT_TRUE(at::equal(got[i], image_by_hand(checkpoint, options, i)))
            << "image " << i << ", sampler " << static_cast<int>(sampler.kind) << ", eta " << sampler.eta;
    }
  }
}

TEST(Generate, NoTwoDrawsOfARunAreEqual) {
  std::vector<at::Tensor> draws;
  for (const int image : {0, 1, 2}) {
    for (const int draw : {0, 1, 2, 3}) draws.push_back(normals(tiny_config(), 17, image, draw));
  }
  for (size_t a = 0; a < draws.size(); ++a) {
    for (size_t b = 0; b < a; ++b) EXPECT_FALSE(at::equal(draws[a], draws[b])) << a << " and " << b;
  }
}

}  // namespace
}  // namespace dydit
