#include "dydit/engine/cuda/errors.h"

#include "dydit/base/error.h"

namespace dydit::cuda {

void refuse(const std::string& what) { throw Error("CUDA: " + what); }

}  // namespace dydit::cuda
