// Pickles (protocol 2) and torch archives put together for tests, opcode by opcode.
#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <vector>

#include "dydit/io/bytes.h"
#include "tests/support/zip_builder.h"

namespace dydit::test::pickle {

inline std::string text(const std::string& value) {
  std::string out = "X";
  append_little<uint32_t>(out, static_cast<uint32_t>(value.size()));
  return out + value;
}

inline std::string number(int64_t value) {
  std::string out = "\x8a\x08";  // LONG1 of 8 bytes
  append_little<int64_t>(out, value);
  return out;
}

inline std::string real(double value) {
  std::string out = "G";
  append_little<uint64_t>(out, __builtin_bswap64(std::bit_cast<uint64_t>(value)));
  return out;
}

inline std::string global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}

inline std::string tuple(const std::vector<std::string>& values) {
  std::string out = "(";
  for (const std::string& value : values) out += value;
  return out + "t";
}

inline std::string list(const std::vector<std::string>& values) {
  std::string out = "](";
  for (const std::string& value : values) out += value;
  return out + "e";
}

/// A dict of alternating keys and values, set into `empty` (an OrderedDict's call, or an object).
inline std::string dict(const std::vector<std::string>& items, const std::string& empty = "}") {
  std::string out = empty + "(";
  for (const std::string& item : items) out += item;
  return out + "u";
}

inline std::string call(const std::string& callee, const std::string& arguments) {
  return callee + arguments + "R";
}

inline std::string ordered_dict(const std::vector<std::string>& items) {
  return dict(items, call(global("collections", "OrderedDict"), ")"));
}

struct TensorSpec {
  std::vector<int64_t> sizes = {2, 2};
  std::vector<int64_t> strides = {2, 1};
  int64_t offset = 0;
  int64_t numel = 4;
  std::string type = "FloatStorage";
  std::string device = "cpu";
  std::string key = "0";
};

inline std::string tensor(const TensorSpec& spec) {
  const auto numbers = [](const std::vector<int64_t>& values) {
    std::vector<std::string> out;
    for (int64_t value : values) out.push_back(number(value));
    return tuple(out);
  };
  const std::string storage = tuple({text("storage"), global("torch", spec.type), text(spec.key),
                                     text(spec.device), number(spec.numel)}) +
                              "Q";
  return call(global("torch._utils", "_rebuild_tensor_v2"),
              tuple({storage, number(spec.offset), numbers(spec.sizes), numbers(spec.strides), "\x89",
                     ordered_dict({})}));
}

inline std::string pickle_of(const std::string& value) { return "\x80\x02" + value + "."; }

/// An archive of the pickle and one storage "0" of the floats 1, 2, 3, 4.
inline std::vector<ZipMember> members_of(const std::string& value) {
  std::string floats;
  for (float f : {1.0f, 2.0f, 3.0f, 4.0f}) append_little<uint32_t>(floats, std::bit_cast<uint32_t>(f));
  return {{"m/data.pkl", pickle_of(value)},
          {"m/byteorder", "little"},
          {"m/data/0", floats},
          {"m/version", "3\n"}};
}

inline std::string archive_of(const std::string& value) { return build_zip(members_of(value)); }

}  // namespace dydit::test::pickle
