// generate --devices: a process for each device makes its shard of the images, and this one collects them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "dydit/pipeline/generate.h"
#include "verbs.h"

namespace dydit {

/// "0,1,3" or "cuda:0,cuda:1" or "cpu,cpu" -> names as --device takes them. Throws UsageError.
std::vector<std::string> parse_devices(const std::string& text);

/// Starts this program's generate with `args`, which name no output, once for each device with --device and
/// --shard; hands out all samples in order of index. Where one fails or `cancel` is set, the others are asked
/// to stop, what is finished is handed out, and Error with the first's message, or Cancelled, is thrown.
void generate_on_devices(const Args& args, const std::vector<std::string>& devices, int num_images,
                         const GenerateCallbacks& callbacks);

}  // namespace dydit
