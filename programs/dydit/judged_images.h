// The images that dydit evaluate judges: a model's as they are sampled, or those that lie somewhere.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "dydit/base/progress.h"
#include "dydit/data/source.h"
#include "dydit/eval/feature_store.h"
#include "dydit/io/image.h"
#include "evaluate_images.h"

namespace dydit {

struct JudgedImage {
  Image image;
  int64_t label = kNoLabel;
  ImageCost cost;
};

/// Images that are judged: how many, what they are, and how some of them in a row are made.
struct JudgedImages {
  int64_t count = 0;
  nlohmann::json key;            // all that the images depend on
  nlohmann::ordered_json about;  // for the result
  std::vector<std::string> class_names;
  std::vector<std::filesystem::path> inputs;
  /// Image i of those that lie somewhere, with its label; any thread. Else `make` has them.
  std::function<JudgedImage(int64_t index)> read;
  /// [first, first + count), in order; `told` of steps done.
  std::function<void(int64_t first, int64_t count, const std::function<void(JudgedImage&&)>& take,
                     const ProgressFn& told)>
      make;
};

/// Those of a model, which `cancel` ends; its flags become options.
JudgedImages images_of_model(Cli& cli, const ModelFlags& model, EvaluateImagesFlags& flags,
                             const CancelFlag& cancel);
/// The first `most` of those that lie at `path`; 0: all.
JudgedImages images_that_lie(const std::string& path, const std::string& split, int64_t most);

}  // namespace dydit
