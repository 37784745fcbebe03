// Tensors of tests/golden, the reference vectors computed with the authors' published code.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "dydit/io/safetensors.h"
#include "dydit/model/checkpoint.h"

namespace dydit::test {

inline std::filesystem::path golden_path(const std::string& file) {
  return std::filesystem::path(DYDIT_TESTS_DIR) / "golden" / file;
}

/// Tensor `name` of golden/`file`.safetensors.
inline at::Tensor golden(const std::string& file, const std::string& name) {
  const SafetensorsFile read = read_safetensors(golden_path(file + ".safetensors"));
  return to_tensor(read.tensors.at(name), read.file).clone();
}

inline std::vector<int> golden_ints(const std::string& file, const std::string& name) {
  const at::Tensor values = golden(file, name);
  return {values.data_ptr<int64_t>(), values.data_ptr<int64_t>() + values.numel()};
}

inline std::vector<double> golden_doubles(const std::string& file, const std::string& name) {
  const at::Tensor values = golden(file, name);
  return {values.data_ptr<double>(), values.data_ptr<double>() + values.numel()};
}

}  // namespace dydit::test
