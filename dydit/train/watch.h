// What a run leaves to look at: log.txt in DiT's line format, log.csv, TensorBoard events.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "dydit/io/tfevents.h"
#include "dydit/train/step.h"

namespace dydit {

/// Means over the steps since the last row.
struct LogRow {
  int64_t step = 0;  // steps done
  StepTerms terms;
  std::vector<std::string> hooks;  // names of terms.hooks
  bool weighted = false;           // whether the loss weighs the mse: then its column is there
  bool distilled = false;          // whether it is a consistency loss, instead of mse and vb
  double target = 1;               // of the last step
  double grad_norm = 0;            // mean over steps whose norm was finite
  double lr = 0;                   // of the last step
  int64_t skipped = 0;             // since the start
  double seconds = 0;              // of the interval
  double images_per_second = 0;
  double steps_per_second = 0;
};

/// "(step=0000100) Train Loss: 0.1234, Train Steps/Sec: 0.84, ..."
std::string log_line(const LogRow& row);

class Watch {
 public:
  /// Appends to the run's files; rows, lines and events beyond `resumed_step` are dropped first.
  Watch(const std::filesystem::path& run, int64_t resumed_step);
  void add(const LogRow& row);
  void add_image(int64_t step, int width, int height, std::span<const std::byte> png);

 private:
  std::filesystem::path run_;
  std::unique_ptr<EventWriter> events_;
};

}  // namespace dydit
