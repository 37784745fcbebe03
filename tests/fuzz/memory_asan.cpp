// Under AddressSanitizer its allocator calls us. Only differences of the counts mean anything.
#include "memory.h"

// Of sanitizer/allocator_interface.h, which some distributions keep in a package of its own.
extern "C" {
int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void*, size_t),
                                              void (*on_free)(const volatile void*));
size_t __sanitizer_get_allocated_size(const volatile void*);
}

namespace dydit::fuzz {
namespace {

// The driver's child has one thread; plain counters keep the hooks fast. They begin high, since memory of
// before the hooks may be freed after.
size_t live = size_t{1} << 40, peak = live;

void on_malloc(const volatile void*, size_t size) {
  live += size;
  if (live > peak) peak = live;
}

void on_free(const volatile void* data) {
  if (data != nullptr) live -= __sanitizer_get_allocated_size(data);
}

}  // namespace

void start_counting() {
  [[maybe_unused]] static const int once = __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
}
size_t live_bytes() { return live; }
size_t peak_bytes() { return peak; }
void reset_peak() { peak = live; }

}  // namespace dydit::fuzz
