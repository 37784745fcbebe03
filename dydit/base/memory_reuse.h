// Keeps the memory of tensors for the next tensors of the same size.
#pragma once

#include <cstddef>

namespace dydit {

/// The most memory that is kept at a time.
inline constexpr size_t kMostKept = size_t{256} << 20;

/// While one lives, the CPU tensor memory that its thread asks for is kept when it is freed, kMostKept at
/// most, and handed out again, so that a loop that makes the same tensors at every step asks the system for
/// memory in its first steps only. Other threads get and return theirs as ever. Scopes may nest and overlap,
/// the last one to end gives everything back; each ends on the thread that began it. Tensors may outlive it.
class MemoryReuse {
 public:
  MemoryReuse();
  ~MemoryReuse();
  MemoryReuse(const MemoryReuse&) = delete;
  MemoryReuse& operator=(const MemoryReuse&) = delete;
};

}  // namespace dydit
