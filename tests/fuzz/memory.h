// How much memory is allocated: by operator new and by malloc, in our code and in the libraries it calls.
#pragma once

#include <cstddef>

namespace dydit::fuzz {

/// Counts from now on. memory_malloc.cpp replaces malloc and counts always; memory_asan.cpp installs hooks.
void start_counting();
/// Bytes allocated and not yet freed.
size_t live_bytes();
/// The most that live_bytes() was since the last reset.
size_t peak_bytes();
void reset_peak();

}  // namespace dydit::fuzz
