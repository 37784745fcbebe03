// One list of named columns feeds both the CSV and the events.
#include "dydit/train/watch.h"

#include <cerrno>
#include <charconv>
#include <cmath>
#include <fstream>
#include <optional>
#include <sstream>
#include <vector>

#include <fmt/format.h>
#include <system_error>

#include "dydit/base/error.h"
#include "dydit/io/csv.h"
#include "dydit/io/file.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

using Columns = std::vector<std::pair<std::string, std::optional<double>>>;

// The loss and what it consists of.
Columns loss_columns(const LogRow& row) {
  const StepTerms& terms = row.terms;
  if (row.distilled)
    return {{"loss", terms.loss()}, {"consistency", terms.mse}, {"complete_consistency", terms.complete_mse}};
  return {{"loss", terms.loss()},
          {"mse", terms.mse},
          {"vb", terms.vb},
          {"complete_mse", terms.complete_mse},
          {"complete_vb", terms.complete_vb}};
}

// A quarter of which nothing was drawn has no value.
Columns columns(const LogRow& row) {
  const StepTerms& terms = row.terms;
  Columns result = loss_columns(row);
  const Columns others = {{"flops_loss", terms.flops_loss},
                          {"target_ratio", row.target},
                          {"ratio_training", terms.ratio},
                          {"ratio_inference", terms.inference_ratio},
                          {"grad_norm", row.grad_norm},
                          {"skipped", static_cast<double>(row.skipped)},
                          {"lr", row.lr},
                          {"images_per_second", row.images_per_second}};
  result.insert(result.end(), others.begin(), others.end());
  if (row.weighted) result.emplace_back("weighted_mse", terms.weighted_mse);
  for (size_t i = 0; i < row.hooks.size(); ++i) result.emplace_back(row.hooks[i], terms.hooks[i]);
  for (const auto& [name, kept] : {std::pair{"heads", &terms.heads}, std::pair{"groups", &terms.groups},
                                   std::pair{"tokens", &terms.tokens}}) {
    for (int q = 0; q < kQuarters; ++q) {
      const double share = (*kept)[q];
      result.emplace_back(fmt::format("{}_q{}", name, q),
                          std::isnan(share) ? std::nullopt : std::optional(share));
    }
  }
  return result;
}

void append(const fs::path& path, const std::string& text) {
  errno = 0;
  std::ofstream file(path, std::ios::app);
  file << text << std::flush;
  DYDIT_CHECK(file, "{}: cannot append to it: {}", path.string(), std::generic_category().message(errno));
}

// "12,0.5,..." in log.csv, "(step=0000012) Train Loss: ..." in log.txt; other lines, as the header, belong to
// no step.
int64_t step_of(std::string_view line) {
  constexpr std::string_view kPrefix = "(step=";
  if (line.starts_with(kPrefix)) line.remove_prefix(kPrefix.size());
  int64_t step = 0;
  std::from_chars(line.data(), line.data() + line.size(), step);
  return step;
}

// Keeps the lines of steps up to `last`.
void truncate_log(const fs::path& path, int64_t last) {
  std::ifstream in(path);
  if (!in) return;
  std::ostringstream kept;
  for (std::string line; std::getline(in, line);) {
    // A line that a kill cut short has no end; getline gives it with eof set.
    if (!in.eof() && step_of(line) <= last) kept << line << '\n';
  }
  write_output_file(path, kept.str());
}

}  // namespace

std::string log_line(const LogRow& row) {
  std::string line = fmt::format(
      "(step={:07}) Train Loss: {:.4f}, Train Steps/Sec: {:.2f}, Images/Sec: {:.1f}, Grad Norm: {:.3f}, "
      "Skipped: {}",
      row.step, row.terms.loss(), row.steps_per_second, row.images_per_second, row.grad_norm, row.skipped);
  if (row.target < 1 || row.terms.ratio < 1) {
    line += fmt::format(", Ratio: {:.4f} (training) {:.4f} (inference), Target: {:.4f}", row.terms.ratio,
                        row.terms.inference_ratio, row.target);
  }
  for (size_t i = 0; i < row.hooks.size(); ++i)
    line += fmt::format(", {}: {:.4f}", row.hooks[i], row.terms.hooks[i]);
  return line;
}

Watch::Watch(const fs::path& run, int64_t resumed_step) : run_(run) {
  for (const char* name : {"log.csv", "log.txt"}) truncate_log(run_ / name, resumed_step);
  truncate_events(run_, resumed_step);
  events_ = std::make_unique<EventWriter>(run_);
}

void Watch::add(const LogRow& row) {
  const auto named = columns(row);
  if (std::error_code missing; fs::file_size(run_ / "log.csv", missing) == 0 || missing) {
    CsvCells header = {"step", "seconds"};
    for (const auto& [name, value] : named) header.push_back(name);
    append(run_ / "log.csv", csv_line(header));
  }
  CsvCells cells = {fmt::format("{}", row.step), fmt::format("{:.3f}", row.seconds)};
  for (const auto& [name, value] : named) {
    cells.push_back(value ? fmt::format("{:.8g}", *value) : "");
    if (value) events_->scalar(name, row.step, static_cast<float>(*value));
  }
  append(run_ / "log.csv", csv_line(cells));
  append(run_ / "log.txt", log_line(row) + "\n");
}

void Watch::add_image(int64_t step, int width, int height, std::span<const std::byte> png) {
  events_->image("samples", step, width, height, png);
}

}  // namespace dydit
