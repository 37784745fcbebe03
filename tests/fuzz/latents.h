// Packed latents: the index, and shards of a set whose index is right.
#pragma once

#include "targets.h"

namespace dydit::fuzz {

Target latents_index_target();
Target latent_shard_target();

}  // namespace dydit::fuzz
