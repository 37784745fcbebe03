// The pickle machine: a stack, a stack of marks and a memo, as Lib/pickletools documents the opcodes. Text
// opcodes of protocols 0 and 1, extension codes and out-of-band buffers are refused: torch writes none.
#include <algorithm>
#include <bit>
#include <cstring>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/pickle.h"
#include "dydit/io/pickle_opcodes.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

// A checkpoint of DyDiT-XL with its optimizer has about 60 000 values. The caps bound memory: a value takes
// one byte of a hostile file and 48 of ours, an item of a container one and 8, and so do marks and the memo
// with 4.
constexpr size_t kMaxValues = 1 << 19;
constexpr size_t kMaxEntries = 1 << 20;

class Machine {
 public:
  Machine(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes), name_(name) {
    none_ = add(PickleKind::None);
    true_ = add_integer(PickleKind::Bool, 1);
    false_ = add_integer(PickleKind::Bool, 0);
  }

  Pickle run() {
    if (read<uint8_t>() != kProto) damaged("it does not begin with a protocol number");
    const auto protocol = read<uint8_t>();
    DYDIT_CHECK(protocol >= 2 && protocol <= 5,
                "{}: pickle protocol {}; 2 to 5 are known. Save it again with "
                "torch.save and pickle_protocol=2.",
                name_, protocol);
    for (uint8_t opcode; (opcode = read<uint8_t>()) != kStop;) run_number(opcode);
    pickle_.root = pop();
    pickle_.size = at_;
    return std::move(pickle_);
  }

 private:
  [[noreturn]] void damaged(std::string_view what) const {
    throw Error(
        fmt::format("{}: damaged pickle at byte {}: {}. Fetch or save the file again.", name_, at_, what));
  }

  [[noreturn]] void refuse(uint8_t opcode) const {
    const auto* known = std::find_if(std::begin(kRefusedOpcodes), std::end(kRefusedOpcodes),
                                     [&](const RefusedOpcode& row) { return row.opcode == opcode; });
    const char* label = known == std::end(kRefusedOpcodes) ? "unknown" : known->name;
    throw Error(
        fmt::format("{}: pickle opcode 0x{:02x} ({}) at byte {} is not one that torch writes. Save the "
                    "weights again with torch.save, or as safetensors.",
                    name_, opcode, label, at_ - 1));
  }

  // --- bytes

  const std::byte* take(uint64_t count) {
    if (count > bytes_.size() - at_)
      damaged(fmt::format("{} bytes wanted, {} left", count, bytes_.size() - at_));
    const std::byte* data = bytes_.data() + at_;
    at_ += count;
    return data;
  }

  template <std::integral T>
  T read() {
    return load_little<T>(take(sizeof(T)));
  }

  std::string_view take_text(uint64_t count) { return {reinterpret_cast<const char*>(take(count)), count}; }

  std::string_view take_line() {
    const std::string_view rest = text_of(bytes_.subspan(at_));
    const size_t length = rest.find('\n');
    if (length == std::string_view::npos) damaged("a name without an end");
    at_ += length + 1;
    return rest.substr(0, length);
  }

  // --- values, stack and marks

  PickleIndex add(PickleKind kind) {
    DYDIT_CHECK(
        pickle_.values.size() < kMaxValues,
        "{}: pickle has more than {} values; a checkpoint has some thousands. Save the weights alone.", name_,
        kMaxValues);
    pickle_.values.emplace_back().kind = kind;
    return static_cast<PickleIndex>(pickle_.values.size() - 1);
  }

  PickleIndex add_integer(PickleKind kind, int64_t integer) {
    const PickleIndex index = add(kind);
    pickle_.values[index].integer = integer;
    return index;
  }

  PickleIndex add_text(PickleKind kind, std::string_view text) {
    const PickleIndex index = add(kind);
    pickle_.values[index].text_size = text.size();
    pickle_.values[index].text_data = text.data();
    return index;
  }

  PickleIndex add_call(PickleKind kind, PickleIndex callee, PickleIndex argument) {
    const PickleIndex index = add(kind);
    pickle_.values[index].callee = callee;
    pickle_.values[index].argument = argument;
    return index;
  }

  // Before an entry more of the stack, the marks, the memo or all containers together.
  void check_entries(size_t count) const {
    DYDIT_CHECK(count < kMaxEntries,
                "{}: pickle has more than {} entries on its stack, in its memo or in its containers; a "
                "checkpoint has some thousands. Save the weights alone.",
                name_, kMaxEntries);
  }

  void push(PickleIndex index) {
    check_entries(stack_.size());
    stack_.push_back(index);
  }

  // Values below the last mark belong to an unfinished container and cannot be taken.
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }

  PickleIndex top() const {
    if (stack_.size() <= floor()) damaged("a value wanted, the stack is empty");
    return stack_.back();
  }

  PickleIndex pop() {
    const PickleIndex index = top();
    stack_.pop_back();
    return index;
  }

  size_t pop_mark() {
    if (marks_.empty()) damaged("a mark wanted, there is none");
    const size_t mark = marks_.back();
    marks_.pop_back();
    return mark;
  }

  void append_item(PickleIndex container, PickleIndex item) {
    const auto link = static_cast<uint32_t>(pickle_.items.size());
    check_entries(link);
    pickle_.items.push_back({item, kNoPickleIndex});
    PickleValue& value = pickle_.values[container];
    if (value.item_count == 0) {
      value.first_item = link;
    } else {
      pickle_.items[value.last_item].next = link;
    }
    value.last_item = link;
    ++value.item_count;
  }

  // Moves the stack from `first` on into the container.
  void move_items(PickleIndex container, size_t first) {
    for (size_t i = first; i < stack_.size(); ++i) append_item(container, stack_[i]);
    stack_.resize(first);
  }

  void push_container(PickleKind kind, size_t first) {
    if (kind == PickleKind::Dict) check_pairs(first);
    const PickleIndex container = add(kind);
    move_items(container, first);
    push(container);
  }

  void push_tuple(size_t count) {
    if (stack_.size() - floor() < count) damaged("a tuple's values wanted, the stack is empty");
    push_container(PickleKind::Tuple, stack_.size() - count);
  }

  void check_pairs(size_t first) const {
    if ((stack_.size() - first) % 2 != 0) damaged("a key without a value");
  }

  // Pairs go into dicts and dict-like objects, single items into lists and sets. What other objects would do
  // with them is unknown, so they are dropped: such an object stays opaque.
  void extend(size_t first, PickleKind wanted) {
    const PickleIndex target = first > floor() ? stack_[first - 1] : kNoPickleIndex;
    if (target == kNoPickleIndex) damaged("a container wanted, the stack is empty");
    if (wanted == PickleKind::Dict) check_pairs(first);
    const PickleKind kind = pickle_.values[target].kind;
    if (kind == wanted || (kind == PickleKind::Object && wanted == PickleKind::Dict)) {
      move_items(target, first);
    } else if (kind == PickleKind::Object) {
      stack_.resize(first);
    } else {
      damaged(fmt::format("items for a {}", pickle_.describe(target)));
    }
  }

  // --- opcodes; each group hands one that it does not have to the next

  void run_number(uint8_t opcode) {
    switch (opcode) {
      case kNone:
        return push(none_);
      case kNewTrue:
        return push(true_);
      case kNewFalse:
        return push(false_);
      case kBinInt:
        return push(add_integer(PickleKind::Int, read<int32_t>()));
      case kBinInt1:
        return push(add_integer(PickleKind::Int, read<uint8_t>()));
      case kBinInt2:
        return push(add_integer(PickleKind::Int, read<uint16_t>()));
      case kLong1:
        return push_long(take_text(read<uint8_t>()));
      case kLong4:
        return push_long(take_text(read<uint32_t>()));
      case kBinFloat:
        return push_float();
      default:
        return run_text(opcode);
    }
  }

  void push_long(std::string_view digits) {
    if (digits.size() > sizeof(int64_t)) return push(add_text(PickleKind::BigInt, digits));
    const bool negative = !digits.empty() && (digits.back() & 0x80) != 0;
    int64_t integer = negative ? -1 : 0;  // the bytes that are not there repeat the sign
    std::memcpy(&integer, digits.data(), digits.size());
    push(add_integer(PickleKind::Int, integer));
  }

  void push_float() {
    const uint64_t bits = __builtin_bswap64(read<uint64_t>());  // the one big-endian number of the format
    const PickleIndex index = add(PickleKind::Float);
    pickle_.values[index].real = std::bit_cast<double>(bits);
    push(index);
  }

  void run_text(uint8_t opcode) {
    const auto push_text = [&](PickleKind kind, uint64_t size) { push(add_text(kind, take_text(size))); };
    switch (opcode) {
      case kBinString:
      case kBinUnicode:
        return push_text(PickleKind::String, read<uint32_t>());
      case kShortBinString:
      case kShortBinUnicode:
        return push_text(PickleKind::String, read<uint8_t>());
      case kBinUnicode8:
        return push_text(PickleKind::String, read<uint64_t>());
      case kBinBytes:
        return push_text(PickleKind::Bytes, read<uint32_t>());
      case kShortBinBytes:
        return push_text(PickleKind::Bytes, read<uint8_t>());
      case kBinBytes8:
      case kByteArray8:
        return push_text(PickleKind::Bytes, read<uint64_t>());
      default:
        return run_container(opcode);
    }
  }

  void run_container(uint8_t opcode) {
    switch (opcode) {
      case kEmptyList:
        return push(add(PickleKind::List));
      case kEmptyTuple:
        return push(add(PickleKind::Tuple));
      case kEmptyDict:
        return push(add(PickleKind::Dict));
      case kEmptySet:
        return push(add(PickleKind::Set));
      case kList:
        return push_container(PickleKind::List, pop_mark());
      case kTuple:
        return push_container(PickleKind::Tuple, pop_mark());
      case kDict:
        return push_container(PickleKind::Dict, pop_mark());
      case kFrozenSet:
        return push_container(PickleKind::Set, pop_mark());
      case kTuple1:
        return push_tuple(1);
      case kTuple2:
        return push_tuple(2);
      case kTuple3:
        return push_tuple(3);
      case kAppends:
        return extend(pop_mark(), PickleKind::List);
      case kAddItems:
        return extend(pop_mark(), PickleKind::Set);
      case kSetItems:
        return extend(pop_mark(), PickleKind::Dict);
      case kAppend:
        return extend_by(1, PickleKind::List);
      case kSetItem:
        return extend_by(2, PickleKind::Dict);
      default:
        return run_call(opcode);
    }
  }

  void extend_by(size_t count, PickleKind wanted) {
    if (stack_.size() - floor() < count) damaged("an item wanted, the stack is empty");
    extend(stack_.size() - count, wanted);
  }

  void run_call(uint8_t opcode) {
    switch (opcode) {
      case kGlobal: {
        const PickleIndex module = add_text(PickleKind::String, take_line());
        const PickleIndex name = add_text(PickleKind::String, take_line());
        return push(add_call(PickleKind::Global, module, name));
      }
      case kStackGlobal: {
        const PickleIndex name = pop();
        const PickleIndex module = pop();
        return push(add_call(PickleKind::Global, module, name));
      }
      case kNewObjEx:
        pop();
        [[fallthrough]];  // keyword arguments
      case kReduce:
      case kNewObj: {
        const PickleIndex argument = pop();
        const PickleIndex callee = pop();
        return push(call(callee, argument));
      }
      case kBuild: {
        const PickleIndex state = pop();
        PickleValue& target = pickle_.values[top()];
        // A dict's state is its attributes, such as a state dict's _metadata; nobody here asks for them.
        if (target.kind == PickleKind::Object) target.state = state;
        return;
      }
      case kBinPersId:
        return push(add_call(PickleKind::Persistent, kNoPickleIndex, pop()));
      default:
        return run_stack(opcode);
    }
  }

  // What a call stands for.
  PickleIndex call(PickleIndex callee, PickleIndex argument) {
    const PickleValue arguments = pickle_.values[argument];
    if (arguments.kind == PickleKind::Tuple) {
      const bool some = arguments.item_count > 0;
      if (!some && pickle_.is_global(callee, "collections", "OrderedDict")) return add(PickleKind::Dict);
      if (pickle_.is_global(callee, "torch._utils", "_rebuild_tensor_v2") ||
          pickle_.is_global(callee, "torch._utils", "_rebuild_tensor")) {
        return add_call(PickleKind::Tensor, kNoPickleIndex, argument);
      }
      if (some && (pickle_.is_global(callee, "torch._utils", "_rebuild_parameter") ||
                   pickle_.is_global(callee, "torch", "Size"))) {
        return pickle_.items[arguments.first_item].value;
      }
    }
    return add_call(PickleKind::Object, callee, argument);
  }

  void run_stack(uint8_t opcode) {
    switch (opcode) {
      case kFrame:
        return take_frame(read<uint64_t>());
      case kMark:
        check_entries(marks_.size());
        return marks_.push_back(static_cast<uint32_t>(stack_.size()));
      case kPopMark:
        return stack_.resize(pop_mark());
      case kPop:
        return pop_value_or_mark();
      case kBinPut:
        return put(read<uint8_t>());
      case kLongBinPut:
        return put(read<uint32_t>());
      case kMemoize:
        return put(memo_.size());
      case kBinGet:
        return push(get(read<uint8_t>()));
      case kLongBinGet:
        return push(get(read<uint32_t>()));
      default:
        return refuse(opcode);
    }
  }

  // A frame only helps readers of streams; here the bytes are all at hand.
  void take_frame(uint64_t size) const {
    if (size > bytes_.size() - at_)
      damaged(fmt::format("a frame of {} bytes, {} left", size, bytes_.size() - at_));
  }

  void pop_value_or_mark() {
    if (stack_.size() > floor()) {
      stack_.pop_back();
    } else {
      pop_mark();
    }
  }

  void put(size_t slot) {
    // Picklers number the memo upwards, one opcode an entry, so an honest number never passes our place.
    if (slot > at_) damaged(fmt::format("memo number {} out of order", slot));
    check_entries(slot);
    if (slot >= memo_.size()) memo_.resize(slot + 1, kNoPickleIndex);
    memo_[slot] = top();
  }

  PickleIndex get(size_t slot) const {
    if (slot >= memo_.size() || memo_[slot] == kNoPickleIndex)
      damaged(fmt::format("nothing under memo number {}", slot));
    return memo_[slot];
  }

  std::span<const std::byte> bytes_;
  const std::string& name_;
  size_t at_ = 0;
  Pickle pickle_;
  std::deque<PickleIndex> stack_;
  std::deque<uint32_t> marks_;  // heights of the stack
  std::deque<PickleIndex> memo_;
  PickleIndex none_ = 0;
  PickleIndex true_ = 0;
  PickleIndex false_ = 0;
};

}  // namespace

Pickle parse_pickle(std::span<const std::byte> bytes, const std::string& name) {
  return Machine(bytes, name).run();
}

}  // namespace dydit
