#include "version_facts.h"

#include <string>

#include <ATen/Version.h>
#include <torch/headeronly/version.h>

#include "dydit/base/dtype.h"
#include "dydit/base/level.h"
#include "dydit/base/version.h"
#include "dydit_commit.h"

namespace dydit {
namespace {

// "Intel(R) MKL-DNN v3.10.2 (Git Hash ...)" -> "3.10.2"
std::string onednn_version() {
  const std::string text = at::get_mkldnn_version();
  const size_t at = text.find(" v");
  return at == std::string::npos ? "none" : text.substr(at + 2, text.find(' ', at + 2) - at - 2);
}

}  // namespace

nlohmann::ordered_json version_facts(Isa isa) {
  return {{"version", kVersion},
          {"commit", kCommit},
          {"libtorch", TORCH_VERSION},
          {"onednn", onednn_version()},
          {"isa", isa_name(isa)},
          {"auto", level_of(auto_dtype()).name},
          {"bf16", level_of(at::kBFloat16).name}};
}

}  // namespace dydit
