// What dydit bench times beside a model at one level: all of its levels of arithmetic, an autoencoder's two
// halves (seconds, work, memory), and a network of features (images a second, the resize included).
#pragma once

#include <string>

#include "bench_contestant.h"
#include "cli.h"
#include "dydit/base/isa.h"
#include "extractor_flags.h"

namespace dydit {

struct BenchVaeFlags {
  std::string path;
  int side = 256;

  void add(Cli& cli);
};

/// Those of the verb's flags that count here, too.
struct BenchRun {
  std::string dtype;
  int batch = 1, threads = 1, repeats = 1;
};

/// The timesteps of a lap.
struct BenchSteps {
  int count;
  SamplerKind sampler;
};

/// The model's forwards at every level of arithmetic that this processor can compute, and whether auto takes
/// the fastest.
int bench_levels(Cli& cli, const LapFlags& flags, const BenchSteps& steps, const Checkpoint& checkpoint,
                 Isa isa);
int bench_vae(Cli& cli, const BenchVaeFlags& flags, const BenchRun& run, Isa isa);
/// side: of the images before they are resized.
int bench_extractor(Cli& cli, const ExtractorFlags& flags, int side, const BenchRun& run, Isa isa);

}  // namespace dydit
