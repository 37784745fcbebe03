// Attention of one head over the pixels of a map, in float32, strip by strip of its rows: the whole matrix is
// never there.
#pragma once

#include "dydit/base/team.h"
#include "dydit/conv/map.h"

namespace dydit::vae {

using namespace conv;

/// out <- softmax(q k^T / sqrt(C)) v of a float32 map that holds q, k and v of C channels each, side by side.
void attend(Team& team, const Map& qkv, Map& out);

/// Bytes that attend() needs at most beside its arguments.
double attention_bytes(int H, int W, int C, int threads);

}  // namespace dydit::vae
