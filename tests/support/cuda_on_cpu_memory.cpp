// Memory for kernels that run on the CPU.
#include <new>
#include <unistd.h>

#include <sys/mman.h>

#include "tests/support/cuda_memory.h"

namespace dydit::cuda {

bool has_machine() { return true; }
void finish_kernels() {}

// A page in front, and one behind which nobody may touch.
Block take_block(size_t array_bytes) {
  const size_t page = static_cast<size_t>(getpagesize()), aligned = (array_bytes + 15) / 16 * 16;
  const size_t bytes = (aligned + page - 1) / page * page + page;
  void* at = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) throw std::bad_alloc();
  mprotect(static_cast<char*>(at) + bytes, page, PROT_NONE);
  return {static_cast<unsigned char*>(at), bytes, bytes - aligned};
}

void give_block(const Block& block) { munmap(block.begin, block.bytes + static_cast<size_t>(getpagesize())); }

}  // namespace dydit::cuda
