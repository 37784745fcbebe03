// dydit inspect FOLDER of latents: what they are, whose, and how a model sees them.
#pragma once

#include <string>

#include "cli.h"

namespace dydit {

/// Of a folder for which latent_layout() says something. All shards are compared with their SHA-256.
void inspect_latents(const Cli& cli, const std::string& path);

}  // namespace dydit
