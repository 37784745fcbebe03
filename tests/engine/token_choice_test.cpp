// The kernel that chooses tokens decides as select_tokens does, by which all other engines decide.
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "dydit/engine/cuda/launch.h"
#include "dydit/plan/run_plan.h"
#include "tests/support/cuda_memory.h"

namespace dydit {
namespace {

std::vector<uint8_t> chosen_by_kernel(const std::vector<float>& logits, int keep) {
  const int N = static_cast<int>(logits.size()), capacity = keep < 0 ? N : keep;
  cuda::Array<int> rows(capacity), inverse(N), counts(1);
  cuda::Array<float> own(logits);
  cuda::choose_tokens({rows.data(), inverse.data(), counts.data()}, own.data(),
                      {.keep = keep, .threshold = kGateThreshold, .capacity = capacity}, 1, N, nullptr);
  std::vector<uint8_t> mask;
  for (const int position : inverse.values()) mask.push_back(position >= 0);
  return mask;
}

TEST(TokenChoice, TheKernelDecidesAsSelectTokens) {
  std::mt19937 random(3);
  std::normal_distribution<float> draw;
  const float hard[] = {0.0f, -0.0f, HUGE_VALF, -HUGE_VALF, std::nanf(""), -std::nanf(""), 1e-40f, -1e-40f};
  for (const int N : {1, 16, 100, 256, 1024}) {
    for (int round = 0; round < 4; ++round) {
      std::vector<float> logits(N);
      for (float& logit : logits)
        logit = random() % 4 == 0 ? hard[random() % std::size(hard)] : std::round(8 * draw(random)) / 8;
      for (const int keep : {-1, 0, 1, N / 3, N - 1, N})
        EXPECT_EQ(chosen_by_kernel(logits, keep), select_tokens(logits, keep))
            << N << " " << keep << " " << round;
    }
  }
}

}  // namespace
}  // namespace dydit
