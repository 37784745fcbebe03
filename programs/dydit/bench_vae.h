// dydit bench --vae: seconds, work and memory of an autoencoder's two halves.
#pragma once

#include <string>

#include "cli.h"
#include "dydit/base/isa.h"

namespace dydit {

struct BenchVaeFlags {
  std::string path;
  int side = 256;

  void add(Cli& cli);
};

/// Those of the verb's flags that count here, too.
struct BenchVaeRun {
  std::string dtype;
  int batch = 1, threads = 1, repeats = 1;
};

int bench_vae(Cli& cli, const BenchVaeFlags& flags, const BenchVaeRun& run, Isa isa);

}  // namespace dydit
