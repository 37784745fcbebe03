// From the names of tensors to the kind of autoencoder, and to what else they may be.
#include <array>
#include <cctype>

#include "dydit/base/error.h"
#include "dydit/io/text.h"
#include "dydit/model/checkpoint_parts.h"
#include "dydit/vae/read_parts.h"

namespace dydit {
namespace {

constexpr std::array<std::string_view, 2> kPrefixes = {"first_stage_model.", "vae."};

bool has_prefix(const TensorViews& tensors, std::string_view prefix) {
  const auto found = tensors.lower_bound(std::string(prefix));
  return found != tensors.end() && found->first.starts_with(prefix);
}

bool any_holds(const TensorViews& tensors, std::string_view part) {
  for (const auto& [name, view] : tensors) {
    if (name.find(part) != name.npos) return true;
  }
  return false;
}

// A part of a name that stands directly behind `prefix` is a number.
bool has_position(const TensorViews& tensors, std::string_view prefix) {
  const auto found = tensors.lower_bound(std::string(prefix) + "0");  // digits follow each other
  return found != tensors.end() && found->first.starts_with(prefix) &&
         std::isdigit(static_cast<unsigned char>(found->first[prefix.size()])) != 0;
}

}  // namespace

std::string_view prefix_of(const TensorViews& tensors) {
  for (const std::string_view prefix : kPrefixes) {
    if (has_prefix(tensors, prefix)) return prefix;
  }
  return "";
}

std::optional<VaeNames> names_below(const TensorViews& tensors, std::string_view prefix,
                                    const std::string& file) {
  const std::string before(prefix);
  for (const char* half : {"encoder.", "decoder."}) {
    if (tensors.contains(before + half + "layers.0.weight")) return VaeNames::DiffusersTiny;
    if (has_position(tensors, before + half)) return VaeNames::Taesd;
    for (const char* part : {"mid.", "down.", "up."}) {
      if (has_prefix(tensors, before + half + part)) return VaeNames::Ldm;
    }
  }
  bool found = false, old = false, current = false;
  for (const char* half : {"encoder.", "decoder."}) {
    const std::string attention = before + half + "mid_block.attentions.0.";
    for (const char* part : {"mid_block.", "down_blocks.", "up_blocks."})
      found = found || has_prefix(tensors, before + half + part);
    for (const char* part : {"query.", "key.", "value.", "proj_attn."})
      old = old || has_prefix(tensors, attention + part);
    for (const char* part : {"to_q.", "to_k.", "to_v.", "to_out."})
      current = current || has_prefix(tensors, attention + part);
  }
  DYDIT_CHECK(!old || !current,
              "{}: its attention has both spellings of names, the old one (query, key, value, proj_attn) and "
              "to_q, to_k, to_v, to_out.0; which weights are meant?",
              file);
  if (!found) return std::nullopt;
  return old ? VaeNames::OldDiffusers : VaeNames::Diffusers;
}

std::optional<VaeHalf> taesd_half(const TensorViews& tensors) {
  if (!has_position(tensors, "")) return std::nullopt;
  for (const auto& [name, view] : tensors) {
    if (name.ends_with(".conv.0.weight"))
      return tensors.contains("0.weight") ? VaeHalf::Encoder : VaeHalf::Decoder;
  }
  return std::nullopt;
}

void refuse_tensors(const TensorViews& tensors, const std::string& file) {
  struct Mark {
    std::string_view part;
    const char* what;
  };
  constexpr std::array kOthers = {Mark{"bn.running_mean", "FLUX.2's (AutoencoderKLFlux2)"},
                                  Mark{"quantize.embedding", "one of codes (VQModel)"},
                                  Mark{"encoder.stages.", "a deep-compression one (AutoencoderDC)"},
                                  Mark{".conv1.conv.", "one of videos"}};
  for (const Mark& mark : kOthers) {
    DYDIT_CHECK(!any_holds(tensors, mark.part),
                "{}: this autoencoder is {}, by its tensor names ({}), which is not supported; AutoencoderKL "
                "or TAESD's is wanted",
                file, mark.what, mark.part);
  }
  DYDIT_CHECK(!any_holds(tensors, "x_embedder.proj.weight"),
              "{}: is a DiT, which --model takes; an autoencoder is wanted", file);
  throw Error(fmt::format("{}: holds no autoencoder by its tensor names ({}{}).{}", file,
                          tensors.empty() ? "none" : printable(tensors.begin()->first, 60),
                          tensors.size() > 1 ? ", ..." : "", guess_model(tensors)));
}

}  // namespace dydit
