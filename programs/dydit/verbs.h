// The verbs of the program. Each parses its own command line and returns the exit status.
#pragma once

#include <string>
#include <vector>

#include "dydit/base/isa.h"

namespace dydit {

using Args = std::vector<std::string>;

int run_generate(const Args& args, Isa isa);
int run_decode(const Args& args, Isa isa);
int run_inspect(const Args& args, Isa isa);
int run_verify(const Args& args, Isa isa);
int run_train(const Args& args, Isa isa);
int run_finetune(const Args& args, Isa isa);
int run_convert(const Args& args, Isa isa);
int run_quantize(const Args& args, Isa isa);
int run_bench(const Args& args, Isa isa);
int run_calibrate(const Args& args, Isa isa);
int run_evaluate(const Args& args, Isa isa);
int run_latents(const Args& args, Isa isa);
int run_report(const Args& args, Isa isa);
int run_serve(const Args& args, Isa isa);

}  // namespace dydit
