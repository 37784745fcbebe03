#include "tests/support/isa.h"

#include <cstdlib>

#include "dydit/base/isa.h"

namespace dydit::test {

void apply_isa_of_environment() {
  const char* cap = std::getenv("DYDIT_ISA");
  apply_isa_cap(cap ? cap : "");
}

namespace {

// Before the first tensor is made.
const bool applied = (apply_isa_of_environment(), true);

}  // namespace
}  // namespace dydit::test
