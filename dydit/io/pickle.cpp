// Looking at the values of a pickle; the machine that makes them is pickle_machine.cpp.
#include "dydit/io/pickle.h"

#include <array>

#include <fmt/format.h>

#include "dydit/io/text.h"

namespace dydit {
namespace {

// In the order of PickleKind.
constexpr std::array<const char*, 15> kKindNames = {"None",   "bool",   "int",    "int of many digits",
                                                    "float",  "str",    "bytes",  "list",
                                                    "tuple",  "set",    "dict",   "global",
                                                    "object", "tensor", "storage"};

std::string global_name(const Pickle& pickle, const PickleValue& global) {
  return printable(pickle[global.callee].text()) + "." + printable(pickle[global.argument].text());
}

}  // namespace

std::vector<PickleIndex> Pickle::items_of(PickleIndex container) const {
  std::vector<PickleIndex> result;
  result.reserve(values[container].item_count);
  for (uint32_t item = values[container].first_item; item != kNoPickleIndex; item = items[item].next) {
    result.push_back(items[item].value);
  }
  return result;
}

PickleIndex Pickle::find(PickleIndex dict, std::string_view key) const {
  PickleIndex found = kNoPickleIndex;
  uint32_t item = values[dict].first_item;
  while (item != kNoPickleIndex) {
    const PickleValue& candidate = values[items[item].value];
    const PickleItem& value = items[items[item].next];
    if (candidate.kind == PickleKind::String && candidate.text() == key) found = value.value;
    item = value.next;
  }
  return found;
}

bool Pickle::is_global(PickleIndex index, std::string_view module, std::string_view name) const {
  if (index == kNoPickleIndex || values[index].kind != PickleKind::Global) return false;
  return values[values[index].callee].text() == module && values[values[index].argument].text() == name;
}

std::string Pickle::describe(PickleIndex index) const {
  const PickleValue& value = values[index];
  if (value.kind == PickleKind::Global) return "global " + global_name(*this, value);
  if (value.kind == PickleKind::Object && values[value.callee].kind == PickleKind::Global) {
    return global_name(*this, values[value.callee]) + " object";
  }
  return kKindNames[static_cast<size_t>(value.kind)];
}

}  // namespace dydit
