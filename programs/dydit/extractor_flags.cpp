#include "extractor_flags.h"

#include <algorithm>

#include <fmt/ranges.h>

#include "dydit/base/dtype.h"
#include "dydit/base/error.h"
#include "dydit/io/recognize.h"

namespace dydit {

namespace fs = std::filesystem;

std::vector<std::string> extractor_file_names(ExtractorKind kind) {
  switch (kind) {
    case ExtractorKind::Inception:
      return {"pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"};
    case ExtractorKind::Lite0:
      return {"efficientnet-lite0-57934424.pth"};
    case ExtractorKind::Resnet56:
      return {"resnet56-4bfd9763.th"};
    case ExtractorKind::Resnet20:
      return {"resnet20-12fca82f.th"};
  }
  return {};
}

fs::path find_extractor_weights(ExtractorKind kind, const fs::path& path) {
  std::error_code unreadable;  // is told when it is opened
  if (!fs::is_directory(path, unreadable)) return fs::exists(path, unreadable) ? path : fs::path();
  for (const std::string& name : extractor_file_names(kind)) {
    if (fs::exists(path / name, unreadable)) return path / name;
  }
  return {};
}

void ExtractorFlags::add(Cli& cli) {
  cli.add_choice("--extractor", extractor, kExtractorNames.names(),
                 "Network of the features; lite0 and the resnets compare our own models only");
  cli.add_choice("--resize", resize, {"adm", "pytorch-fid", "clean-fid"},
                 "How images come to the size of inception: as ADM (and torch-fidelity), pytorch-fid or "
                 "clean-fid do; their numbers differ");
  cli.add_choice("--extractor-dtype", dtype, {"f32", "bf16"},
                 "Its arithmetic; bf16 for curves on the way, never for a table");
}

fs::path ExtractorFlags::file() const {
  if (kind() == ExtractorKind::Inception && weights.starts_with("recipe:")) return weights;
  const std::vector<std::string> names = extractor_file_names(kind());
  const fs::path found = find_extractor_weights(kind(), weights.empty() ? kFetchedWeights : weights);
  DYDIT_USAGE_CHECK(!found.empty(),
                    "no weights of {}{}: name the file, or the folder that holds {}, with "
                    "--weights",
                    extractor, weights.empty() ? "" : " in " + weights, fmt::join(names, " or "));
  return found;
}

std::unique_ptr<Extractor> ExtractorFlags::load(Cli& cli, int threads) const {
  const fs::path path = file();
  auto extractor =
      std::make_unique<Extractor>(kind(), path, kResizeNames.at(resize), dtype == "bf16", threads);
  cli.console.info(fmt::format("features {} ({}), sha256 {:.10}, resize {}, {}", this->extractor,
                               path.string(), extractor->weights_sha256(), kResizeNames[extractor->rule()],
                               dtype));
  return extractor;
}

}  // namespace dydit
