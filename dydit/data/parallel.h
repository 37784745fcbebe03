// A loop over images on several threads.
#pragma once

#include <cstdint>
#include <functional>

namespace dydit {

/// fn(i) for i = 0..count-1 on `threads` threads. Rethrows the exception of the lowest i that threw, so that
/// which image is named does not depend on timing.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& fn);

}  // namespace dydit
