// Runs recorded from diffusers' DPMSolverMultistepScheduler (tools/make_dpm_vectors.py), replayed.
#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/diffusion/solver.h"
#include "dydit/io/safetensors.h"
#include "dydit/model/checkpoint.h"
#include "tests/support/random_model.h"
#include "tests/support/sampling.h"

namespace dydit {
namespace {

using test::relative_difference;

constexpr double kTolerance = 1e-4;

class Recording {
 public:
  at::Tensor tensor(const std::string& name) const {
    return to_tensor(file_.tensors.at(name), file_.file).clone();
  }

  /// Ascending, as ours are.
  std::vector<int> timesteps(const std::string& name) const {
    const at::Tensor visited = tensor(name).to(at::kInt);
    std::vector<int> list(visited.data_ptr<int>(), visited.data_ptr<int>() + visited.numel());
    std::reverse(list.begin(), list.end());
    return list;
  }

 private:
  SafetensorsFile file_ = read_safetensors(std::filesystem::path(DYDIT_TESTS_DIR) / "golden/dpm.safetensors");
};

// Every state of the run, with a second half of output channels that must not be looked at.
void expect_states(const std::string& name) {
  const Recording recording;
  const DiffusionTables tables = make_diffusion_tables(recording.timesteps(name + "_timesteps"));
  const at::Tensor states = recording.tensor(name + "_states");
  at::Tensor x = recording.tensor(name + "_start");
  int steps = 0;
  const auto denoise = [&](const at::Tensor& state, int step) {
    const at::Tensor eps = at::sin(state + 0.002 * tables.timesteps[step]);
    return at::cat({eps, at::full_like(eps, 1e9)}, 1);
  };
  const auto compare = [&](int done, const at::Tensor&) {
    ++steps;
    EXPECT_LT(relative_difference(x, states[done - 1]), kTolerance) << name << ", step " << done;
  };
  test::sample(tables, {SamplerKind::Dpm, 0}, x, denoise, nullptr, compare);
  EXPECT_EQ(steps, states.size(0));
}

TEST(Dpm, StatesOf20StepsAreThoseOfDiffusers) { expect_states("steps20"); }
TEST(Dpm, StatesOfARunBelow15StepsAreThoseOfDiffusers) { expect_states("steps9"); }
TEST(Dpm, StatesOfTwoStepsAreThoseOfDiffusers) { expect_states("steps2"); }
TEST(Dpm, StateOfOneStepIsThatOfDiffusers) { expect_states("steps1"); }
TEST(Dpm, StatesOfTimestepsByHandAreThoseOfDiffusers) { expect_states("by_hand"); }

TEST(Dpm, TimestepsAreThoseOfDiffusers) {
  const Recording recording;
  for (const int steps : {1, 2, 3, 7, 10, 18, 25, 50, 74, 100, 250, 333, 500, 999}) {
    const std::vector<int> wanted = recording.timesteps("spacing_" + std::to_string(steps));
    EXPECT_EQ(choose_timesteps(SamplerKind::Dpm, steps).timesteps,
              std::vector<double>(wanted.begin(), wanted.end()));
  }
}

}  // namespace
}  // namespace dydit
