// dydit evaluate of images: what a model makes, or what lies somewhere, against a reference.
#pragma once

#include <string>

#include "cli.h"
#include "dydit/base/isa.h"
#include "dydit/pipeline/generate.h"
#include "extractor_flags.h"
#include "model_flags.h"
#include "plan_flags.h"
#include "sampling_flags.h"
#include "stitch_flags.h"
#include "vae_flags.h"

namespace dydit {

struct EvaluateImagesFlags {
  ExtractorFlags extractor;
  SamplingFlags sampling;
  PlanFlags plan;
  StitchFlags stitch;
  VaeFlags vae;
  std::string images, images_split, reference, reference_split;  // `images`: with --loss their number
  std::string labels = "random", folder, write_stats, save, name;
  bool fid_infinity = false, torch_fidelity = false, no_pairs = false;
  GenerateOptions options;

  void add(Cli& cli);
};

/// `model`: of the flags that every verb with a model has; its path is empty where images are measured.
int evaluate_images(Cli& cli, const ModelFlags& model, EvaluateImagesFlags& flags, Isa isa);

}  // namespace dydit
