#include "dydit/engine/cpu/workspace.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "dydit/engine/cpu/kernels.h"
#include "dydit/engine/cpu/packed_linear.h"

namespace dydit::cpu {
namespace {

// Tokens that go through the blocks together, of all threads and of one: bounds memory, fits caches.
constexpr int kTeamRows = 1024, kOwnRows = 256;

// Appends rows [begin, end) in `count` pieces that differ by one row at most.
void cut(int begin, int end, int count, std::vector<Piece>& pieces) {
  const int least = (end - begin) / count, larger = (end - begin) % count;
  for (int i = 0; i < count; ++i)
    pieces.push_back({begin + i * least + std::min(i, larger), least + (i < larger)});
}

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

void RowGroups::assign(std::span<const Row> rows) {
  order_.clear();
  starts_.clear();
  std::vector<int> left(rows.size());
  std::iota(left.begin(), left.end(), 0);
  while (!left.empty()) {
    const StepPlan& plan = *rows[left[0]].step;
    const auto others = std::stable_partition(left.begin(), left.end(), [&](int b) {
      return rows[b].step == &plan || rows[b].step->same_work(plan);
    });
    starts_.push_back(static_cast<int>(order_.size()));
    order_.insert(order_.end(), left.begin(), others);
    left.erase(left.begin(), others);
  }
  starts_.push_back(static_cast<int>(order_.size()));
}

std::vector<Piece> RowGroups::pieces_alone(const Division& division) const {
  std::vector<Piece> pieces;
  for (size_t g = 0; g + 1 < starts_.size(); ++g) {
    const int begin = starts_[g], end = std::min(starts_[g + 1], division.alone);
    const int64_t tasks = int64_t{division.tasks} * (end - begin);  // beyond 32 bits for 65,536 samples
    if (begin < end) cut(begin, end, static_cast<int>((tasks + division.alone - 1) / division.alone), pieces);
  }
  return pieces;
}

std::vector<Piece> RowGroups::pieces_together(const Division& division) const {
  std::vector<Piece> pieces;
  for (size_t g = 0; g + 1 < starts_.size(); ++g) {
    const int begin = std::max(starts_[g], division.alone), end = starts_[g + 1];
    for (int first = begin; first < end; first += division.samples)
      pieces.push_back({first, std::min(division.samples, end - first)});
  }
  return pieces;
}

double PassBytes::sum() const {
  return static_cast<double>(x) + static_cast<double>(rows) + static_cast<double>(qkv) +
         static_cast<double>(heads) + static_cast<double>(hidden) + static_cast<double>(patches) +
         static_cast<double>(logits) + static_cast<double>(before) + static_cast<double>(joined) +
         static_cast<double>(outputs);
}

PassBytes pass_bytes(const DiTConfig& config, bool bf16, int samples, int ranges, int level) {
  const size_t rows = static_cast<size_t>(samples) * config.sequence(level), element = bf16 ? 2 : 4,
               row = even(config.hidden_size), H = config.num_heads;
  const int p = config.patch(level),
            patch = std::max(even(config.patch_values(level)), p * p * config.out_channels());
  const size_t images = config.output_conv ? static_cast<size_t>(samples) * config.out_channels() *
                                                 config.input_size * config.input_size * sizeof(float)
                                           : 0;  // before their convolution
  return {.x = rows * row * sizeof(float),
          .rows = rows * row * sizeof(float),  // of the final layer
          .qkv = rows * even(3 * config.hidden_size) * element,
          .heads = rows * H * even(config.head_size()) * element,
          .hidden = rows * H * even(config.group_size()) * element,
          .patches = rows * patch * sizeof(float),
          .logits = config.token_routers ? rows * sizeof(float) : 0,
          .before = ranges * rows * config.hidden_size * sizeof(float),
          .joined = std::max(config.join != Join::None ? rows * 2 * row * sizeof(float) : 0, images),
          .outputs = config.num_joins() * rows * config.hidden_size * sizeof(float)};
}

double workspace_bytes(const DiTConfig& config, bool bf16, int64_t rows, int threads, int ranges) {
  const int B = static_cast<int>(std::min<int64_t>(rows, std::numeric_limits<int>::max() / 2));
  const Division division = divide(B, config.sequence(), threads);
  double bytes =
      static_cast<double>(attention_scratch(config.sequence(), config.head_size(), bf16 ? 2 : 4)) * threads;
  if (division.alone > 0) bytes += pass_bytes(config, bf16, division.samples_alone(), ranges).sum() * threads;
  if (division.together > 0) bytes += pass_bytes(config, bf16, division.samples, ranges).sum();
  return bytes;
}

}  // namespace dydit::cpu
