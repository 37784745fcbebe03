// This program's malloc and its kin take the place of the C library's and tell three functions, which the one
// file that includes this defines. glibc's own names lie behind them.
#pragma once

#include <cerrno>
#include <cstddef>

bool memory_asked(size_t bytes);    // before a block of so many bytes is asked for; false: there is none
void memory_given(void* block);     // a block came, never null
void memory_returned(void* block);  // a block is about to be freed, never null

extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* memory, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);
void __libc_free(void* memory);
}

namespace dydit::test {

inline void* given(void* block) {
  if (block != nullptr) memory_given(block);
  return block;
}
inline void returned(void* block) {
  if (block != nullptr) memory_returned(block);
}
inline void* none() {
  errno = ENOMEM;
  return nullptr;
}
inline void* aligned(size_t alignment, size_t bytes) {
  return memory_asked(bytes) ? given(__libc_memalign(alignment, bytes)) : none();
}

}  // namespace dydit::test

extern "C" {
void* malloc(size_t bytes) {
  return memory_asked(bytes) ? dydit::test::given(__libc_malloc(bytes)) : dydit::test::none();
}
void* calloc(size_t number, size_t bytes) {
  return memory_asked(number * bytes) ? dydit::test::given(__libc_calloc(number, bytes))
                                      : dydit::test::none();
}
void* realloc(void* memory, size_t bytes) {
  if (!memory_asked(bytes)) return dydit::test::none();
  dydit::test::returned(memory);
  return dydit::test::given(__libc_realloc(memory, bytes));
}
void* aligned_alloc(size_t alignment, size_t bytes) { return dydit::test::aligned(alignment, bytes); }
void* memalign(size_t alignment, size_t bytes) { return dydit::test::aligned(alignment, bytes); }
int posix_memalign(void** memory, size_t alignment, size_t bytes) {
  *memory = dydit::test::aligned(alignment, bytes);
  return *memory == nullptr ? ENOMEM : 0;
}
void free(void* memory) {
  dydit::test::returned(memory);
  __libc_free(memory);
}
}
