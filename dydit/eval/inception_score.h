// Inception Score: exp(mean_i sum_c p_ic (log p_ic - log mean_i p_ic)) over the rows of a part, p =
// softmax(logits) in float64 by log_softmax. It rises with the size of the part: equal sizes only compare.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

namespace dydit {

inline constexpr int64_t kAdmPartRows = 5000;
inline constexpr int kTorchFidelityParts = 10;

/// First row of each part, and the number of rows after the last: parts of `part_rows` rows; a shorter last
/// one counts as much as the others (ADM).
std::vector<int64_t> parts_of_size(int64_t rows, int64_t part_rows);
/// `parts` parts, cut at floor(i rows / parts) (torch-fidelity, which permutes the rows before).
std::vector<int64_t> parts_of_number(int64_t rows, int parts);

struct InceptionScore {
  double mean = 0, deviation = 0;  // over the parts, ddof 0: no error of the mean
  std::optional<double> error;     // jackknife over groups of images; absent where a part has fewer than 40
};

/// logits (N, classes) float32, in the order of the images. Throws Error where they are not finite.
InceptionScore inception_score(const at::Tensor& logits, std::span<const int64_t> bounds, int threads);

/// Neighbours are of one class more than three times as often as by chance: a part then sees few classes, and
/// its score is far too low.
bool is_class_ordered(std::span<const int64_t> labels);

}  // namespace dydit
