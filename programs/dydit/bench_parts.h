// What dydit bench times beside models: an autoencoder's two halves (seconds, work, memory), and a network of
// features (images a second, the resize included).
#pragma once

#include <string>

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

int bench_vae(Cli& cli, const BenchVaeFlags& flags, const BenchRun& run, Isa isa);
/// side: of the images before they are resized.
int bench_extractor(Cli& cli, const ExtractorFlags& flags, int side, const BenchRun& run, Isa isa);

}  // namespace dydit
