#include "tests/support/cuda_on_cpu.h"

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

#include <sys/mman.h>

#include "dydit/engine/cuda/device.h"

namespace dydit::cuda {
namespace {

constexpr size_t kStack = size_t{64} << 10;
constexpr int kMaxThreads = 1024;
constexpr size_t kMaxShared = 227 * 1024;  // of a block on sm_90

enum class State { Ready, AtWarp, AtBlock, Done };
enum class Call { None, SyncWarp, Shuffle, Ballot, MultiplyAdd, Matrices4, Transposed4, Transposed2 };

struct Copy {
  void* to;
  const void* from;
};

struct Fiber {
  State state = State::Ready;
  bool started = false;
  jmp_buf at;
  // What it calls its warp for.
  Call call = Call::None;
  void* result = nullptr;
  const void* first = nullptr;
  const void* second = nullptr;
  int mask = 0;
  std::vector<Copy> open;                // copies in no group yet
  std::deque<std::vector<Copy>> groups;  // on their way
};

// Stacks, and shared memory that ends at a page which nobody may touch; made once.
struct Memory {
  Memory() {
    stacks = static_cast<char*>(map(kMaxThreads * kStack));
    const size_t page = static_cast<size_t>(getpagesize());
    shared = static_cast<char*>(map((kMaxShared + page - 1) / page * page + page));
    shared_end = shared + (kMaxShared + page - 1) / page * page;
    if (mprotect(shared_end, page, PROT_NONE) != 0) throw std::runtime_error("mprotect");
  }
  static void* map(size_t bytes) {
    void* at =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::runtime_error("mmap");
    return at;
  }
  char *stacks, *shared, *shared_end;
};

struct Machine {
  Grid grid;
  const std::function<void()>* thread = nullptr;
  int x = 0, y = 0, z = 0;
  std::vector<Fiber> fibers;
  int current = 0;
  char* shared = nullptr;
  jmp_buf scheduler;
  ucontext_t start_from;
  std::string failure;
};

Memory& memory() {
  static Memory memory;
  return memory;
}
Machine machine;
FiberOrder fiber_order = FiberOrder::Ascending;
std::mt19937 shuffles(1);

Fiber& current() { return machine.fibers[machine.current]; }

// Back to the scheduler; returns when this fiber's turn comes again.
void yield() {
  if (_setjmp(current().at) == 0) _longjmp(machine.scheduler, 1);
}

// A kernel that does what no kernel may: the grid ends, and run_grid says why.
void fail(const std::string& why) {
  if (machine.failure.empty())
    machine.failure =
        "thread " + std::to_string(machine.current) + " of block " + std::to_string(machine.x) + ": " + why;
  _longjmp(machine.scheduler, 1);
}

void begin_fiber() {
  (*machine.thread)();
  current().state = State::Done;
  if (!current().open.empty() || !current().groups.empty()) {
    // Copies that nobody waited for may arrive when the memory is another block's.
    for (const auto& group : current().groups)
      if (!group.empty()) fail("ended with copies on their way");
    if (!current().open.empty()) fail("ended with copies on their way");
  }
  _longjmp(machine.scheduler, 1);
}

void resume(int index) {
  machine.current = index;
  if (_setjmp(machine.scheduler) != 0) return;
  Fiber& fiber = current();
  if (fiber.started) _longjmp(fiber.at, 1);
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = memory().stacks + static_cast<size_t>(index) * kStack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, begin_fiber, 0);
  setcontext(&context);
}

// What a lane asked for: the rows of 8 values of bfloat16 that lanes name.
void load(Fiber* lanes, int matrices, bool transposed) {
  uint16_t values[4][8][8];
  for (int m = 0; m < matrices; ++m) {
    for (int r = 0; r < 8; ++r) {
      const auto* row = static_cast<const char*>(lanes[8 * m + r].first);
      if (reinterpret_cast<uintptr_t>(row) % 16 != 0) return fail("a matrix's row is not aligned");
      if (row < machine.shared || row + 16 > machine.shared + machine.grid.shared)
        return fail("a matrix's row is not in shared memory");
      std::memcpy(values[m][r], row, 16);
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int m = 0; m < matrices; ++m) {
      const uint16_t low = transposed ? values[m][2 * t][g] : values[m][g][2 * t];
      const uint16_t high = transposed ? values[m][2 * t + 1][g] : values[m][g][2 * t + 1];
      static_cast<uint32_t*>(lanes[lane].result)[m] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}

struct Fragments {
  const uint32_t* a;
  uint32_t b[2];
};

void multiply(Fiber* lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const auto& own = *static_cast<const Fragments*>(lanes[lane].first);
    for (int half = 0; half < 2; ++half) {    // of the 16 inputs
      for (int rows = 0; rows < 2; ++rows) {  // of a
        a[g + 8 * rows][2 * t + 8 * half] = low_float(own.a[2 * half + rows]);
        a[g + 8 * rows][2 * t + 8 * half + 1] = high_float(own.a[2 * half + rows]);
      }
      b[2 * t + 8 * half][g] = low_float(own.b[half]);
      b[2 * t + 8 * half + 1][g] = high_float(own.b[half]);
    }
  }
  for (int rows = 0; rows < 16; ++rows) {
    double sums[8] = {};
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) sums[column] += double{a[rows][k]} * b[k][column];
    }
    for (int column = 0; column < 8; ++column) {
      float& d = static_cast<float*>(lanes[rows % 8 * 4 + column / 2].result)[rows / 8 * 2 + column % 2];
      d = static_cast<float>(d + sums[column]);
    }
  }
}

void execute(Fiber* lanes) {
  switch (lanes[0].call) {
    case Call::SyncWarp:
    case Call::None:
      break;
    case Call::Shuffle:
      for (int lane = 0; lane < kWarp; ++lane)
        *static_cast<float*>(lanes[lane].result) =
            *static_cast<const float*>(lanes[lane ^ lanes[lane].mask].first);
      break;
    case Call::Ballot: {
      uint32_t bits = 0;
      for (int lane = 0; lane < kWarp; ++lane) bits |= static_cast<uint32_t>(lanes[lane].mask) << lane;
      for (int lane = 0; lane < kWarp; ++lane) *static_cast<uint32_t*>(lanes[lane].result) = bits;
      break;
    }
    case Call::MultiplyAdd:
      return multiply(lanes);
    case Call::Matrices4:
      return load(lanes, 4, /*transposed=*/false);
    case Call::Transposed4:
      return load(lanes, 4, /*transposed=*/true);
    case Call::Transposed2:
      return load(lanes, 2, /*transposed=*/true);
  }
}

// The last of a warp's lanes to come does what all came for, and goes on.
void meet_warp(Call call) {
  Fiber& own = current();
  own.call = call;
  own.state = State::AtWarp;
  Fiber* const lanes = &machine.fibers[machine.current / kWarp * kWarp];
  for (int lane = 0; lane < kWarp; ++lane) {
    if (lanes[lane].state == State::AtWarp && lanes[lane].call != call)
      fail("lanes of a warp want different things");
    if (lanes[lane].state == State::Done) fail("a lane of the warp has ended");
  }
  if (!std::all_of(lanes, lanes + kWarp, [](const Fiber& lane) { return lane.state == State::AtWarp; }))
    return yield();
  execute(lanes);
  for (int lane = 0; lane < kWarp; ++lane) lanes[lane].state = State::Ready;
}

// A warp's lanes in turn, each until it waits. Whether any could.
bool run_warp(int warp) {
  int lanes[kWarp];
  std::iota(lanes, lanes + kWarp, 0);
  if (fiber_order == FiberOrder::Descending) std::reverse(lanes, lanes + kWarp);
  if (fiber_order == FiberOrder::Seeded) std::shuffle(lanes, lanes + kWarp, shuffles);
  bool any = false;
  for (const int lane : lanes) {
    const int index = warp * kWarp + lane;
    if (machine.fibers[index].state != State::Ready) continue;
    any = true;
    resume(index);
    if (!machine.failure.empty()) throw std::logic_error(machine.failure);
  }
  return any;
}

void run_block() {
  Memory& memory = cuda::memory();
  const int warps = machine.grid.threads / kWarp;
  machine.fibers.clear();
  machine.fibers.resize(machine.grid.threads);
  machine.failure.clear();
  machine.shared = memory.shared_end - (machine.grid.shared + 15) / 16 * 16;
  std::memset(memory.shared, 0xff, memory.shared_end - memory.shared);
  std::vector<int> order(warps);
  std::iota(order.begin(), order.end(), 0);
  if (fiber_order == FiberOrder::Descending) std::reverse(order.begin(), order.end());
  const auto all = [](State state) {
    return std::all_of(machine.fibers.begin(), machine.fibers.end(),
                       [&](const Fiber& f) { return f.state == state; });
  };
  while (!all(State::Done)) {
    bool any = false;
    if (fiber_order == FiberOrder::Seeded) std::shuffle(order.begin(), order.end(), shuffles);
    for (const int warp : order) {
      while (run_warp(warp)) {
        any = true;
        if (fiber_order == FiberOrder::Seeded && shuffles() % 2) break;  // another warp's turn
      }
    }
    if (!any && all(State::AtBlock)) {
      for (Fiber& fiber : machine.fibers) fiber.state = State::Ready;
    } else if (!any) {
      throw std::logic_error("block " + std::to_string(machine.x) +
                             ": its threads wait for each other for ever");
    }
  }
}

template <typename Out>
void load_with(Call call, Out& out, const void* row) {
  current().first = row;
  current().result = out;
  meet_warp(call);
}

}  // namespace

void set_fiber_order(FiberOrder order, uint32_t seed) {
  fiber_order = order;
  shuffles.seed(seed);
}

void run_grid(const Grid& grid, const std::function<void()>& thread) {
  if (grid.threads % kWarp != 0 || grid.threads > kMaxThreads || grid.shared > static_cast<int>(kMaxShared) ||
      grid.x < 1 || grid.y < 1 || grid.z < 1)
    throw std::logic_error("a grid that no GPU takes");
  machine.grid = grid;
  machine.thread = &thread;
  for (machine.z = 0; machine.z < grid.z; ++machine.z) {
    for (machine.y = 0; machine.y < grid.y; ++machine.y) {
      for (machine.x = 0; machine.x < grid.x; ++machine.x) run_block();
    }
  }
}

int max_shared_bytes() { return static_cast<int>(kMaxShared); }

int thread_index() { return machine.current; }
int block_threads() { return machine.grid.threads; }
int block_x() { return machine.x; }
int block_y() { return machine.y; }
int block_z() { return machine.z; }
int grid_x() { return machine.grid.x; }
void* shared_memory() { return machine.shared; }

void sync_block() {
  current().state = State::AtBlock;
  yield();
}

void sync_warp() { meet_warp(Call::SyncWarp); }

float shuffle_xor(float value, int mask) {
  float result;
  current().first = &value;
  current().result = &result;
  current().mask = mask;
  meet_warp(Call::Shuffle);
  return result;
}

uint32_t ballot(bool mine) {
  uint32_t result;
  current().result = &result;
  current().mask = mine;
  meet_warp(Call::Ballot);
  return result;
}

int count_bits(uint32_t bits) { return std::popcount(bits); }

void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Fragments fragments = {a, {b0, b1}};
  current().first = &fragments;
  current().result = d;
  meet_warp(Call::MultiplyAdd);
}

void load_matrices(uint32_t (&out)[4], const void* row) { load_with(Call::Matrices4, out, row); }
void load_transposed(uint32_t (&out)[4], const void* row) { load_with(Call::Transposed4, out, row); }
void load_transposed(uint32_t (&out)[2], const void* row) { load_with(Call::Transposed2, out, row); }

void copy_async(void* shared, const void* global) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0)
    fail("a copy is not aligned");
  if (fiber_order == FiberOrder::Seeded && shuffles() % 2) {
    std::memcpy(shared, global, 16);
  } else {
    current().open.push_back({shared, global});
  }
}

void close_copies() {
  current().groups.push_back(std::move(current().open));
  current().open.clear();
}

void wait_for_all_but(int groups) {
  auto& waiting = current().groups;
  for (; static_cast<int>(waiting.size()) > groups; waiting.pop_front()) {
    for (const Copy& copy : waiting.front()) std::memcpy(copy.to, copy.from, 16);
  }
}

uint32_t pack_bf16(float low, float high) {
  const auto rounded = [](float value) {
    if (std::isnan(value)) return 0x7fffu;
    const auto bits = std::bit_cast<uint32_t>(value);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return rounded(low) | rounded(high) << 16;
}

float fast_exp2(float x) { return std::exp2(x); }
float fast_rsqrt(float x) { return 1.0f / std::sqrt(x); }

}  // namespace dydit::cuda
