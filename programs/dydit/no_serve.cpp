// dydit serve of a build with DYDIT_STATIC_DEPS: cpp-httplib is there as a shared library only.
#include "dydit/base/error.h"
#include "verbs.h"

namespace dydit {

int run_serve(const Args& args, Isa isa) {
  throw Error(
      "serve is not in this program: it was built with DYDIT_STATIC_DEPS; take one of scripts/build release");
}

}  // namespace dydit
