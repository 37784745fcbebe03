// Two passes over the products of each set with itself give the balls, one over those of both sets who is
// inside. Float32 only chooses the few pairs that matter; these are measured again in float64, from the
// differences.
#include "dydit/eval/precision_recall.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <compare>
#include <functional>
#include <limits>
#include <mutex>
#include <span>
#include <vector>

#include <ATen/ATen.h>

#include "dydit/base/error.h"
#include "dydit/base/row_pool.h"
#include "dydit/eval/feature_moments.h"
#include "dydit/eval/frechet.h"

namespace dydit {
namespace {

// Taken as a bound on how far float32 puts |x|^2 + |y|^2 - 2 x.y wrong, as a share of |x|^2 + |y|^2.
constexpr float kDoubt = 1e-5f;
constexpr int kKept =
    8;  // nearest rows that float32 chooses; as a rule they decide a radius without any group, too

struct Neighbour {
  double squared = std::numeric_limits<double>::infinity();
  int64_t row = -1;
  auto operator<=>(const Neighbour&) const = default;
};

struct RowSet {
  at::Tensor rows;  // (n, d) float32
  int64_t n, d;
  std::vector<float> squares;  // |x|^2

  const float* row(int64_t i) const { return rows.data_ptr<float>() + i * d; }
};

// Sum of (x - y)^2.
double squared_distance(const float* x, const float* y, int64_t d) {
  std::array<double, 8> sums = {};
  int64_t c = 0;
  for (; c + 8 <= d; c += 8) {
    for (int lane = 0; lane < 8; ++lane) {
      const double difference = static_cast<double>(x[c + lane]) - static_cast<double>(y[c + lane]);
      sums[lane] += difference * difference;
    }
  }
  for (; c < d; ++c) sums[0] += std::pow(static_cast<double>(x[c]) - static_cast<double>(y[c]), 2);
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

RowSet row_set(const at::Tensor& rows) {
  RowSet set{rows, rows.size(0), rows.size(1), {}};
  const std::vector<float> zero(static_cast<size_t>(set.d));
  for (int64_t i = 0; i < set.n; ++i)
    set.squares.push_back(static_cast<float>(squared_distance(set.row(i), zero.data(), set.d)));
  return set;
}

// The nearest rows as float32 sees them. Of any order of offers the same ones are kept.
class Candidates {
 public:
  explicit Candidates(int64_t rows)
      : kept_(static_cast<size_t>(rows * kKept)),
        limits_(static_cast<size_t>(rows), std::numeric_limits<float>::infinity()) {}

  void offer(int64_t row, const Neighbour& neighbour) {
    Neighbour* first = &kept_[row * kKept];
    Neighbour* last = first + kKept - 1;
    if (*last <= neighbour) return;
    Neighbour* place = std::upper_bound(first, last, neighbour);
    std::move_backward(place, last, last + 1);
    *place = neighbour;
    limits_[row] = static_cast<float>(last->squared);
  }
  /// Nearest first; infinite ones where there are fewer rows.
  std::span<const Neighbour> of(int64_t row) const { return std::span(kept_).subspan(row * kKept, kKept); }
  /// Nothing beyond it is kept, per row.
  const std::vector<float>& limits() const { return limits_; }

 private:
  std::vector<Neighbour> kept_;  // (rows, kKept)
  std::vector<float> limits_;
};

// Calls hit(i, j, squared, doubt) for the pairs of a block whose squared distance may be within the limit of
// row i of x or of row j of y; hits may lower limits.
template <typename Hit>
void scan(const ProductBlock& block, const RowSet& x, const RowSet& y, const float* x_limits,
          const float* y_limits, const Hit& hit) {
  constexpr int64_t kChunk = 64;
  const int64_t rows = block.products.size(0), cols = block.products.size(1);
  const float* products = block.products.data_ptr<float>();
  const float* limits = y_limits + block.col;
  const float* squares = &y.squares[block.col];
  for (int64_t i = 0; i < rows; ++i, products += cols) {
    const float square = x.squares[block.row + i];
    const auto least = [&](int64_t j) { return (1 - kDoubt) * (square + squares[j]) - 2 * products[j]; };
    for (int64_t begin = 0; begin < cols; begin += kChunk) {
      const int64_t end = std::min(begin + kChunk, cols);
      const float limit = x_limits[block.row + i];
      int near = 0;
      for (int64_t j = begin; j < end; ++j) {
        const float value = least(j);
        near += static_cast<int>(value <= limit) | static_cast<int>(value <= limits[j]);
      }
      for (int64_t j = near > 0 ? begin : end; j < end; ++j) {
        const float both = square + squares[j];
        if (least(j) <= x_limits[block.row + i] || least(j) <= limits[j])
          hit(block.row + i, block.col + j, both - 2 * products[j], kDoubt * both);
      }
    }
  }
}

// A lock for each block of rows: who looks at a block of products holds those of its rows and of its columns.
class BlockLocks {
 public:
  explicit BlockLocks(int64_t rows) : locks_(static_cast<size_t>(rows / kProductRows + 1)) {}
  std::mutex& operator[](int64_t row) { return locks_[row / kProductRows]; }

 private:
  std::vector<std::mutex> locks_;
};

Candidates nearest_others(const RowSet& set, const ProductOptions& options) {
  Candidates candidates(set.n);
  BlockLocks locks(set.n);
  for_each_own_product(set.rows, at::kFloat, options, [&](const ProductBlock& block) {
    const bool on_diagonal = block.row == block.col;
    const std::unique_lock first(
        locks[block.row]);  // rows before columns: no two threads wait for each other
    const std::unique_lock second =
        on_diagonal ? std::unique_lock<std::mutex>() : std::unique_lock(locks[block.col]);
    const float* limits = candidates.limits().data();
    scan(block, set, set, limits, limits, [&](int64_t i, int64_t j, float squared, float) {
      if (on_diagonal && j <= i) return;
      candidates.offer(i, {squared, j});
      candidates.offer(j, {squared, i});
    });
  });
  return candidates;
}

// The squared distance up to which a list of neighbours, nearest first, is looked at; infinite where it is
// too short.
using Reach = std::function<double(std::span<const Neighbour>)>;

// Neighbours of x among the rows of y but `itself`, measured exactly, nearest first: the candidates, or all
// rows where one that is no candidate could lie within reach.
std::vector<Neighbour> exact_neighbours(const float* x, float square, const RowSet& y, int64_t itself,
                                        std::span<const Neighbour> candidates, const Reach& reach) {
  std::vector<Neighbour> exact;
  for (const Neighbour& candidate : candidates) {
    if (candidate.row >= 0) exact.push_back({squared_distance(x, y.row(candidate.row), y.d), candidate.row});
  }
  std::sort(exact.begin(), exact.end());
  const double needed = reach(exact), kept = candidates.back().squared;
  // Another row lies beyond `kept` but for doubt; a row of more than 4 (|x|^2 + kept) lies beyond it in any
  // case.
  const double doubt = 5 * static_cast<double>(kDoubt) * (static_cast<double>(square) + kept);
  if (candidates.back().row < 0 || needed == 0 || needed <= kept - doubt) return exact;
  exact.clear();
  for (int64_t j = 0; j < y.n; ++j) {
    if (j != itself) exact.push_back({squared_distance(x, y.row(j), y.d), j});
  }
  std::sort(exact.begin(), exact.end());
  size_t looked_at = kKept;
  while (looked_at < exact.size() && std::isinf(reach(std::span(exact).first(looked_at)))) looked_at *= 2;
  exact.resize(std::min(looked_at, exact.size()));
  return exact;
}

// Squared radius of a ball, with the rows of `group` left out; -1 leaves out none.
double radius(std::span<const Neighbour> neighbours, int group) {
  int left = kNeighbours;
  for (const Neighbour& neighbour : neighbours) {
    if (neighbour.row % kJackknifeGroups != group && --left == 0) return neighbour.squared;
  }
  return std::numeric_limits<double>::infinity();
}
double largest_radius(std::span<const Neighbour> neighbours) {
  double largest = 0;
  for (int group = 0; group < kJackknifeGroups; ++group)
    largest = std::max(largest, radius(neighbours, group));
  return largest;
}

struct Balls {
  std::vector<std::vector<Neighbour>> neighbours;  // of each row, nearest first
  std::vector<float> reach;                        // squared, the largest radius that is asked for
};

void for_each_row(int64_t rows, int threads, const std::function<void(int64_t)>& fn) {
  constexpr int64_t kChunk = 256;
  RowPool(threads).run(static_cast<int>((rows + kChunk - 1) / kChunk), [&](int chunk) {
    for (int64_t i = chunk * kChunk; i < std::min((chunk + 1) * kChunk, rows); ++i) fn(i);
  });
}

Balls balls_of(const RowSet& set, const Reach& reach, const ProductOptions& options) {
  const Candidates candidates = nearest_others(set, options);
  Balls balls{std::vector<std::vector<Neighbour>>(set.n), std::vector<float>(set.n)};
  for_each_row(set.n, options.threads, [&](int64_t i) {
    balls.neighbours[i] = exact_neighbours(set.row(i), set.squares[i], set, i, candidates.of(i), reach);
    balls.reach[i] = static_cast<float>(reach(balls.neighbours[i]));
  });
  return balls;
}

constexpr uint32_t kOfAll =
    1u << kJackknifeGroups;  // bit g: inside a ball without group g; this one: of all rows
constexpr uint32_t kEverywhere = 2 * kOfAll - 1;

uint32_t inside(double squared, std::span<const Neighbour> neighbours, int64_t row, bool errors) {
  uint32_t bits = squared <= radius(neighbours, -1) ? kOfAll : 0;
  for (int group = 0; errors && group < kJackknifeGroups; ++group) {
    if (row % kJackknifeGroups != group && squared <= radius(neighbours, group)) bits |= 1u << group;
  }
  return bits;
}

struct Inside {
  std::vector<uint8_t> of_reference;   // (N) 1: inside a ball of the reference
  std::vector<uint32_t> of_generated;  // (M) bits
  Candidates nearest;                  // of generated rows among the reference
};

Inside find_inside(const RowSet& generated, const Balls& generated_balls, const RowSet& reference,
                   const Balls& reference_balls, bool errors, const ProductOptions& options) {
  Inside found{std::vector<uint8_t>(generated.n), std::vector<uint32_t>(reference.n),
               Candidates(generated.n)};
  std::vector<float> limits(static_cast<size_t>(generated.n), std::numeric_limits<float>::infinity());
  const uint32_t settled = errors ? kEverywhere : kOfAll;
  BlockLocks row_locks(generated.n), col_locks(reference.n);
  for_each_product(generated.rows, reference.rows, at::kFloat, options, [&](const ProductBlock& block) {
    const std::scoped_lock lock(row_locks[block.row], col_locks[block.col]);
    scan(block, generated, reference, limits.data(), reference_balls.reach.data(),
         [&](int64_t i, int64_t j, float squared, float doubt) {
           found.nearest.offer(i, {squared, j});
           limits[i] = std::max(generated_balls.reach[i], found.nearest.limits()[i]);
           const bool asks_i = found.of_reference[i] == 0 && squared - doubt <= reference_balls.reach[j];
           const bool asks_j =
               found.of_generated[j] != settled && squared - doubt <= generated_balls.reach[i];
           if (!asks_i && !asks_j) return;
           const double exact = squared_distance(generated.row(i), reference.row(j), generated.d);
           if (exact <= radius(reference_balls.neighbours[j], -1)) found.of_reference[i] = 1;
           found.of_generated[j] |= inside(exact, generated_balls.neighbours[i], i, errors);
         });
  });
  return found;
}

double share(int64_t part, int64_t whole) { return static_cast<double>(part) / static_cast<double>(whole); }

// Distances to neighbour `k` of each row.
at::Tensor distances(const Balls& balls, int k) {
  at::Tensor result = at::empty({static_cast<int64_t>(balls.neighbours.size())}, at::kDouble);
  double* out = result.data_ptr<double>();
  for (const std::vector<Neighbour>& neighbours : balls.neighbours)
    *out++ = std::sqrt(neighbours[k - 1].squared);
  return result;
}

}  // namespace

PrecisionRecall precision_recall(const at::Tensor& generated_rows, const at::Tensor& reference_rows,
                                 const ProductOptions& options) {
  for (const at::Tensor* rows : {&generated_rows, &reference_rows}) {
    DYDIT_CHECK(rows->size(0) > kNeighbours, "precision and recall of {} rows: more than {} are needed",
                rows->size(0), kNeighbours);
  }
  const RowSet generated = row_set(generated_rows), reference = row_set(reference_rows);
  const bool errors = generated.n >= 2 * kJackknifeGroups;
  const Reach whole = [](std::span<const Neighbour> list) { return radius(list, -1); };
  const Balls generated_balls = balls_of(generated, errors ? largest_radius : whole, options);
  const Balls reference_balls = balls_of(reference, whole, options);
  const Inside found = find_inside(generated, generated_balls, reference, reference_balls, errors, options);

  PrecisionRecall result;
  std::vector<int64_t> rows(kJackknifeGroups), inside_rows(kJackknifeGroups), covered(kJackknifeGroups);
  int64_t all_inside = 0, all_covered = 0;
  result.is_inside_reference = at::empty({generated.n}, at::kBool);
  for (int64_t i = 0; i < generated.n; ++i) {
    result.is_inside_reference.data_ptr<bool>()[i] = found.of_reference[i] != 0;
    all_inside += found.of_reference[i];
    ++rows[i % kJackknifeGroups];
    inside_rows[i % kJackknifeGroups] += found.of_reference[i];
  }
  result.is_inside_generated = at::empty({reference.n}, at::kBool);
  for (int64_t j = 0; j < reference.n; ++j) {
    const uint32_t bits = found.of_generated[j];
    result.is_inside_generated.data_ptr<bool>()[j] = (bits & kOfAll) != 0;
    all_covered += (bits & kOfAll) != 0 ? 1 : 0;
    for (int group = 0; group < kJackknifeGroups; ++group) covered[group] += bits >> group & 1;
  }
  result.precision = share(all_inside, generated.n);
  result.recall = share(all_covered, reference.n);
  if (errors) {
    std::vector<double> precisions, recalls;
    for (int group = 0; group < kJackknifeGroups; ++group) {
      precisions.push_back(share(all_inside - inside_rows[group], generated.n - rows[group]));
      recalls.push_back(share(covered[group], reference.n));
    }
    result.precision_error = jackknife_error(precisions);
    result.recall_error = jackknife_error(recalls);
  }
  result.generated_radii = distances(generated_balls, kNeighbours);
  result.reference_radii = distances(reference_balls, kNeighbours);
  result.reference_nearest = distances(reference_balls, 1);
  result.generated_nearest = at::empty({generated.n}, at::kDouble);
  for_each_row(generated.n, options.threads, [&](int64_t i) {
    const auto nearest = exact_neighbours(generated.row(i), generated.squares[i], reference, /*itself=*/-1,
                                          found.nearest.of(i),
                                          [](std::span<const Neighbour> list) { return list[0].squared; });
    result.generated_nearest.data_ptr<double>()[i] = std::sqrt(nearest[0].squared);
  });
  return result;
}

}  // namespace dydit
