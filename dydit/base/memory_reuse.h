// Keeps the memory of tensors for the next tensors of the same size.
#pragma once

namespace dydit {

/// While one lives, freed CPU tensor memory is kept and handed out again, so that a loop
/// that makes the same tensors at every step asks the system for memory in its first steps only.
/// Process-wide; scopes may nest and overlap, the last one to end gives everything back. Tensors may outlive
/// it.
class MemoryReuse {
 public:
  MemoryReuse();
  ~MemoryReuse();
  MemoryReuse(const MemoryReuse&) = delete;
  MemoryReuse& operator=(const MemoryReuse&) = delete;
};

}  // namespace dydit
