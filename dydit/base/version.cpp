// DYDIT_VERSION comes from CMake's project(), for this file alone.
#include "dydit/base/version.h"

namespace dydit {

constinit const std::string_view kVersion = DYDIT_VERSION;

}  // namespace dydit
