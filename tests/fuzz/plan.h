// Plan files, as `generate --plan` reads them, and what is written of those that are read.
#pragma once

#include "targets.h"

namespace dydit::fuzz {

Target plan_target();

}  // namespace dydit::fuzz
