#include "dydit/engine/cpu/workspace.h"

#include <algorithm>
#include <limits>

#include "dydit/engine/cpu/kernels.h"
#include "dydit/engine/cpu/packed_linear.h"

namespace dydit::cpu {
namespace {

// Tokens that go through the blocks together, of all threads and of one: bounds memory, fits caches.
constexpr int kTeamRows = 1024, kOwnRows = 256;

}  // namespace

Division divide(int B, int N, int threads) {
  Division division;
  division.alone = threads > 1 ? B / threads * threads : 0;
  if (division.alone > 0)
    division.tasks = ceil_div(division.alone / threads, std::max(1, kOwnRows / N)) * threads;
  division.together = B - division.alone;
  if (division.together > 0)
    division.samples = ceil_div(division.together, ceil_div(division.together, std::max(1, kTeamRows / N)));
  return division;
}

double PassBytes::sum() const {
  return static_cast<double>(x) + static_cast<double>(rows) + static_cast<double>(qkv) +
         static_cast<double>(heads) + static_cast<double>(hidden) + static_cast<double>(patches) +
         static_cast<double>(logits);
}

PassBytes pass_bytes(const DiTConfig& config, bool bf16, int samples) {
  const size_t rows = static_cast<size_t>(samples) * config.num_tokens(), element = bf16 ? 2 : 4,
               row = even(config.hidden_size), H = config.num_heads;
  const int patch =
      std::max(even(config.patch_values()), config.patch_size * config.patch_size * config.out_channels());
  return {.x = rows * row * sizeof(float),
          .rows = rows * row * sizeof(float),  // of the final layer
          .qkv = rows * even(3 * config.hidden_size) * element,
          .heads = rows * H * even(config.head_size()) * element,
          .hidden = rows * H * even(config.group_size()) * element,
          .patches = rows * patch * sizeof(float),
          .logits = config.token_routers ? rows * sizeof(float) : 0};
}

double workspace_bytes(const DiTConfig& config, bool bf16, int64_t rows, int threads) {
  const int B = static_cast<int>(std::min<int64_t>(rows, std::numeric_limits<int>::max() / 2));
  const Division division = divide(B, config.num_tokens(), threads);
  double bytes =
      static_cast<double>(attention_scratch(config.num_tokens(), config.head_size(), bf16 ? 2 : 4)) * threads;
  if (division.alone > 0) bytes += pass_bytes(config, bf16, division.samples_alone()).sum() * threads;
  if (division.together > 0) bytes += pass_bytes(config, bf16, division.samples).sum();
  return bytes;
}

}  // namespace dydit::cpu
