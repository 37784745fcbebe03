// Whether a GPU can be used, told by what is known of it, and what an engine takes of its memory.
#pragma once

#include <cstdint>
#include <string>

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include "dydit/engine/engine.h"

namespace dydit::aten {

struct DeviceFacts {
  bool built = false;           // with CUDA
  int driver = 0, runtime = 0;  // versions as CUDA counts them, 13000 is 13.0; driver 0: none
  int count = 0;                // GPUs
  // Of the one in question, where there is one.
  std::string name = {};
  int capability = 0;  // 80 is 8.0
  int64_t free_bytes = 0, total_bytes = 0;
};

/// The least that stage 1 runs on, and the first with arithmetic of bfloat16.
inline constexpr int kLeastCapability = 75, kBf16Capability = 80;

/// Throws Error, one line with the way out: no CUDA in this build, no driver, one older than CUDA's runtime,
/// no GPU, no such GPU, one too old, or one that has no bfloat16 where `dtype` is.
void check_device(const DeviceFacts& facts, at::Device device, at::ScalarType dtype);

/// Bytes that an engine and its forwards of `rows` rows take on the device: weights twice where parts can be
/// off, conditioning ahead, and every row's stream, products and tokens.
int64_t device_bytes(const Checkpoint& checkpoint, const EngineOptions& options, int64_t rows);
/// Throws Error where these do not fit into what is free.
void check_device_memory(const DeviceFacts& facts, int64_t bytes, int64_t rows);

}  // namespace dydit::aten
