// dydit bench --extractor: images a second of a network of features, its resize included.
#pragma once

#include "bench_vae.h"
#include "extractor_flags.h"

namespace dydit {

/// side: of the images before they are resized.
int bench_extractor(Cli& cli, const ExtractorFlags& flags, int side, const BenchVaeRun& run, Isa isa);

}  // namespace dydit
