// See the header.
#include "dydit/train/hook_options.h"

namespace dydit {

std::vector<std::string> hook_names(const HookOptions& options) {
  std::vector<std::string> names;
  if (options.align == Align::Dispersive) {
    names.emplace_back("dispersive");
  } else if (options.align != Align::None) {
    names.push_back("align_" + std::string(kAlignNames[options.align]));
  }
  if (options.plr > 0) names.emplace_back("plr");
  return names;
}

nlohmann::json hooks_to_json(const HookOptions& options) {
  nlohmann::json json = nlohmann::json::object();
  if (options.align != Align::None) {
    json["align"] = kAlignNames[options.align];
    json["align-block"] = options.block;
    json["align-weight"] = options.align_weight();
    json["align-until"] = options.until;
  }
  if (options.align == Align::Self) {
    json["align-teacher-block"] = options.teacher_block;
    json["align-interval"] = options.interval;
  }
  if (options.align == Align::Encoder) {
    json["align-manifold"] = options.manifold;
    json["align-manifold-inter"] = options.manifold_inter;
    json["align-encoder"] = options.encoder.sha256;
  }
  if (options.align == Align::Dispersive) json["align-tau"] = options.tau;
  if (options.plr > 0) json["plr"] = options.plr;
  return json;
}

}  // namespace dydit
