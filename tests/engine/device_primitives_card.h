// The primitives on a card.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace dydit::cuda {

/// The words of a Primitives of every thread; nothing where this build or this machine has no card.
std::optional<std::vector<uint32_t>> primitives_on_card(const std::vector<uint32_t>& in);

}  // namespace dydit::cuda
