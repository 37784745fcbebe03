// Bodies of requests, as `dydit serve` reads them.
#pragma once

#include <vector>

#include "targets.h"

namespace dydit::fuzz {

std::vector<Target> order_targets();

}  // namespace dydit::fuzz
