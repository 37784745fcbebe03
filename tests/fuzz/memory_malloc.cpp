// Without sanitizers malloc itself is replaced (operator new calls it), on top of glibc's own.
#include <cerrno>
#include <cstdlib>
#include <malloc.h>

#include "memory.h"

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);
}

namespace {

size_t live = 0, peak = 0;

void* counted(void* data) {
  live += malloc_usable_size(data);
  if (live > peak) peak = live;
  return data;
}

}  // namespace

extern "C" {
void* malloc(size_t size) noexcept { return counted(__libc_malloc(size)); }
void* calloc(size_t count, size_t size) noexcept { return counted(__libc_calloc(count, size)); }
void* memalign(size_t alignment, size_t size) noexcept { return counted(__libc_memalign(alignment, size)); }
void* aligned_alloc(size_t alignment, size_t size) noexcept {
  return counted(__libc_memalign(alignment, size));
}
int posix_memalign(void** out, size_t alignment, size_t size) noexcept {
  *out = counted(__libc_memalign(alignment, size));
  return *out == nullptr ? ENOMEM : 0;
}
void free(void* data) noexcept {
  live -= malloc_usable_size(data);
  __libc_free(data);
}
void* realloc(void* data, size_t size) noexcept {
  const size_t before = malloc_usable_size(data);
  void* moved = __libc_realloc(data, size);
  if (moved == nullptr && size != 0) return nullptr;
  live -= before;
  return counted(moved);
}
}

namespace dydit::fuzz {

void start_counting() {}
size_t live_bytes() { return live; }
size_t peak_bytes() { return peak; }
void reset_peak() { peak = live; }

}  // namespace dydit::fuzz
