// Large files that claim too much, by format. Each is run once, before the mutants.
#pragma once

#include <vector>

#include "targets.h"

namespace dydit::fuzz {

std::vector<Hostile> hostile_safetensors();
std::vector<Hostile> hostile_index();
std::vector<Hostile> hostile_pickles();
std::vector<Hostile> hostile_legacy();
std::vector<Hostile> hostile_npz();
std::vector<Hostile> hostile_tar();
std::vector<Hostile> hostile_gzip();
std::vector<Hostile> hostile_events();
std::vector<Hostile> hostile_png();
std::vector<Hostile> hostile_jpeg();

}  // namespace dydit::fuzz
