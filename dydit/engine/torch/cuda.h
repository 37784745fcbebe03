// What needs CUDA's own headers, for programs that were built with them (preset cuda) and for those that were
// not (no_cuda.cpp).
#pragma once

#include <memory>

#include "dydit/engine/torch/device.h"
#include "dydit/engine/torch/step_graph.h"

namespace dydit::aten {

/// What the driver says of a GPU.
DeviceFacts cuda_facts(int index);
/// Graphs on a stream of their own. `device` was checked.
std::unique_ptr<StepGraphs> make_cuda_graphs(at::Device device, GraphMode mode);
/// For the whole process, before its first product: float32 is float32 (no TF32); and where `one_order`, no
/// product of bfloat16 divides its inputs among several workers, so that a row's sums have one order whatever
/// the number of rows. Of float32 products nobody promises that: TorchEngine::check_invariance looks.
void set_products(bool one_order);

}  // namespace dydit::aten
