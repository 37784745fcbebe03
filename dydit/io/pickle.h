// Pickles as data. The machine builds values and calls nothing: a call of a known torch or collections
// function becomes the value that it stands for, every other one an Object that remembers what was asked.
// Values lie in one arena and name each other by index, so that depth costs no stack and memory is linear.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dydit {

enum class PickleKind : uint8_t {
  None,
  Bool,    // integer
  Int,     // integer
  BigInt,  // text: little-endian two's complement, more than 8 bytes
  Float,   // real
  String,  // text, not checked to be UTF-8
  Bytes,   // text
  List,    // items
  Tuple,   // items
  Set,     // items
  Dict,    // items: key, value, key, value, ... in the order set; a later value of a key wins
  Global,  // callee: String module, argument: String name
  Object,  // callee(argument), state from BUILD, items set like a Dict's
  Tensor,  // argument: the Tuple handed to torch._utils._rebuild_tensor_v2, or _rebuild_tensor before 2018
  Persistent,  // argument: the persistent id, for torch a Tuple that names a storage
};

using PickleIndex = uint32_t;
inline constexpr PickleIndex kNoPickleIndex = 0xFFFFFFFF;

struct PickleValue {
  PickleKind kind = PickleKind::None;
  uint32_t item_count = 0;
  uint32_t first_item = kNoPickleIndex;  // index into Pickle::items
  uint32_t last_item = kNoPickleIndex;
  PickleIndex callee = kNoPickleIndex;
  PickleIndex argument = kNoPickleIndex;
  PickleIndex state = kNoPickleIndex;
  union {
    int64_t integer = 0;
    double real;
    size_t text_size;
  };
  const char* text_data = nullptr;  // into the pickle's bytes

  std::string_view text() const { return {text_data, text_data == nullptr ? 0 : text_size}; }
};

struct PickleItem {
  PickleIndex value;
  uint32_t next;
};

struct Pickle {
  // Deques: they grow without copying, so the peak is the size.
  std::deque<PickleValue> values;
  std::deque<PickleItem> items;
  PickleIndex root = kNoPickleIndex;
  size_t size = 0;  // bytes read, to the end of its STOP

  const PickleValue& operator[](PickleIndex index) const { return values[index]; }

  /// The items of a container in order. Costs item_count: check that first where it matters.
  std::vector<PickleIndex> items_of(PickleIndex container) const;
  /// The value of a text key of a Dict, or kNoPickleIndex.
  PickleIndex find(PickleIndex dict, std::string_view key) const;
  /// True for the Global `module`.`name`.
  bool is_global(PickleIndex index, std::string_view module, std::string_view name) const;
  /// What a value is, for messages: "int", "dict", "os.system object", "global os.system".
  std::string describe(PickleIndex index) const;
};

/// Runs the pickle (protocols 2 to 5). The bytes outlive the result; `name` is used in messages.
/// What follows its end is left alone. Throws Error for a damaged pickle, an opcode outside those that torch
/// uses, or more than 2^19 values or 2^20 items, marks or memo entries.
Pickle parse_pickle(std::span<const std::byte> bytes, const std::string& name);

}  // namespace dydit
