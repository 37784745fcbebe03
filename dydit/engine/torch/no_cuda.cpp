// Of a program that was built without CUDA.
#include "dydit/base/error.h"
#include "dydit/engine/torch/cuda.h"

namespace dydit::aten {

DeviceFacts cuda_facts(int /*index*/) { return {}; }

std::unique_ptr<StepGraphs> make_cuda_graphs(at::Device /*device*/, GraphMode /*mode*/) {
  throw Error("device cuda: this program was built without CUDA");
}

void set_products(bool /*one_order*/) {}

}  // namespace dydit::aten
