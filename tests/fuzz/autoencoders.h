// The targets of autoencoders: config.json, and names and shapes in every layout.
#pragma once

#include <vector>

#include "targets.h"

namespace dydit::fuzz {

std::vector<Target> autoencoder_targets();

}  // namespace dydit::fuzz
