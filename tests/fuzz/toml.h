// The config file of --config, read by the program's own code.
#pragma once

#include "targets.h"

namespace dydit::fuzz {

Target toml_target();

}  // namespace dydit::fuzz
