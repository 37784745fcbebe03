// How kernels' launchers refuse: base/error.h's fmt is nothing that nvcc compiles, so the throwing is in
// errors.cpp.
#pragma once

#include <string>

namespace dydit::cuda {

/// Throws Error.
[[noreturn]] void refuse(const std::string& what);

inline void require(bool holds, const char* what) {
  if (!holds) refuse(what);
}

}  // namespace dydit::cuda
