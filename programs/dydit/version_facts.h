// What a bug report needs.
#pragma once

#include <nlohmann/json.hpp>

#include "dydit/base/isa.h"

namespace dydit {

/// This build, its libraries, and the instructions a run would use.
nlohmann::ordered_json version_facts(Isa isa);

}  // namespace dydit
