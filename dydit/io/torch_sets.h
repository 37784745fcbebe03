// Part of torch_file: the sets of weights that a pickle holds.
#pragma once

#include <string>
#include <vector>

#include "dydit/io/pickle.h"
#include "dydit/io/torch_file.h"
#include "dydit/io/torch_tensor.h"

namespace dydit {

/// At least one set, the preferred one first; what cannot be read of it is its fault. Throws Error when the
/// root is no dict. Averages that are a list get the names of a set of as many tensors of the same shapes.
std::vector<TorchWeights> read_torch_sets(const Pickle& pickle, const TorchStorages& storages,
                                          const std::string& file);

}  // namespace dydit
