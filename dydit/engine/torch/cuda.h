// What needs CUDA's own headers, for programs that were built with them (preset cuda) and for those that were
// not (no_cuda.cpp).
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "dydit/engine/torch/device.h"
#include "dydit/engine/torch/step_graph.h"

namespace dydit::aten {

/// What the driver says of a GPU.
DeviceFacts cuda_facts(int index);
/// Graphs on a stream of their own. `device` was checked.
std::unique_ptr<StepGraphs> make_cuda_graphs(at::Device device, GraphMode mode);
/// One order of sums whatever the number of rows: no product divides its inputs among several workers, no
/// reduced precision. Of the process, before its first product. No effect where `on` is false.
void forbid_divided_products(bool on);

}  // namespace dydit::aten
