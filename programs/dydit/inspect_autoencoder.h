// What inspect says of autoencoders.
#pragma once

#include <string>

#include "cli.h"

namespace dydit {

/// `config`: of --vae-config; empty: none.
void inspect_autoencoder(Cli& cli, const std::string& path, const std::string& config);

}  // namespace dydit
