// The C++ half of tests/python/files_test.py: writes files for Python to read and reads one that Python
// wrote.
//   files_tool write FOLDER      FOLDER/cpp.safetensors and FOLDER/cpp.npz
//   files_tool sums FILE         one line a tensor: name, dtype, shape, sum of its elements
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/io/npz.h"
#include "dydit/io/safetensors.h"

namespace dydit {
namespace {

template <class T>
TensorView view_of(Dtype dtype, std::vector<int64_t> shape, const std::vector<T>& values) {
  return {dtype, std::move(shape), {}, reinterpret_cast<const std::byte*>(values.data())};
}

// Element i of every tensor is i (true for odd i), so that Python can say what it wants.
void write(const std::filesystem::path& folder) {
  const std::vector<float> floats = {0, 1, 2, 3, 4, 5};
  const std::vector<double> doubles = {0, 1, 2};
  const std::vector<int64_t> longs = {0, 1, 2, 3};
  const std::vector<uint8_t> bytes = {0, 1, 2, 3, 4};
  const std::vector<uint8_t> bools = {0, 1, 0};
  write_safetensors(folder / "cpp.safetensors",
                    {{"floats", view_of(Dtype::F32, {2, 3}, floats)},
                     {"doubles", view_of(Dtype::F64, {3}, doubles)},
                     {"longs", view_of(Dtype::I64, {2, 2}, longs)},
                     {"bytes", view_of(Dtype::U8, {5}, bytes)},
                     {"bools", view_of(Dtype::Bool, {3}, bools)},
                     {"scalar", view_of(Dtype::F32, {}, floats)},
                     {"empty", view_of(Dtype::F32, {0, 2}, floats)}},
                    {{"note", "gr\xc3\xbc\xc3\x9f \"quoted\""}});
  NpzImageWriter npz(folder / "cpp.npz", 2, 3, 3);
  for (int image = 0; image < 4; ++image) {
    std::vector<uint8_t> pixels;
    for (int i = 0; i < 2 * 3 * 3; ++i) pixels.push_back(static_cast<uint8_t>(image * 18 + i));
    npz.append({2, 3, 3, pixels});
  }
  npz.commit();
}

template <class T>
double sum_as(const TensorView& tensor) {
  double sum = 0;
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    T value;
    std::memcpy(&value, tensor.data + static_cast<size_t>(i) * sizeof(T), sizeof(T));
    sum += static_cast<double>(value);
  }
  return sum;
}

double sum(const TensorView& tensor) {
  switch (tensor.dtype) {
    case Dtype::F32:
      return sum_as<float>(tensor);
    case Dtype::F64:
      return sum_as<double>(tensor);
    case Dtype::I64:
      return sum_as<int64_t>(tensor);
    case Dtype::I16:
      return sum_as<int16_t>(tensor);
    case Dtype::U8:
    case Dtype::Bool:
      return sum_as<uint8_t>(tensor);
    default:
      throw Error(fmt::format("no sum for {}", dtype_name(tensor.dtype)));
  }
}

void print_sums(const std::filesystem::path& path) {
  const SafetensorsFile file = read_safetensors(path);
  for (const auto& [name, tensor] : file.tensors) {
    fmt::print("{} {} {} {}\n", name, dtype_name(tensor.dtype), shape_text(tensor.shape), sum(tensor));
  }
  for (const auto& [key, value] : file.metadata) fmt::print("# {} {}\n", key, value);
}

}  // namespace
}  // namespace dydit

int main(int argc, char** argv) {
  const std::string verb = argc == 3 ? argv[1] : "";
  try {
    if (verb == "write") {
      dydit::write(argv[2]);
    } else if (verb == "sums") {
      dydit::print_sums(argv[2]);
    } else {
      fmt::print(stderr, "files_tool write FOLDER | sums FILE\n");
      return 2;
    }
  } catch (const dydit::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
