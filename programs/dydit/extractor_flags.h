// Flags of verbs that take features of images: which network, whose weights, which protocol.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cli.h"
#include "dydit/eval/extractor.h"

namespace dydit {

/// The file of that kind's weights: `path` itself, or where it is a folder the file in it that has a
/// published name; empty where there is none.
std::filesystem::path find_extractor_weights(ExtractorKind kind, const std::filesystem::path& path);
/// The published names, the first the best known.
std::vector<std::string> extractor_file_names(ExtractorKind kind);
/// Where weights lie that scripts/fetch-weights fetched.
inline constexpr const char* kFetchedWeights = "build/weights";

struct ExtractorFlags {
  std::string extractor = "inception", weights, resize = "adm", dtype = "f32";

  void add(Cli& cli);
  /// Loads it and tells which weights were taken.
  std::unique_ptr<Extractor> load(Cli& cli, int threads) const;
  ExtractorKind kind() const { return kExtractorNames.at(extractor); }
  std::filesystem::path file() const;
};

}  // namespace dydit
