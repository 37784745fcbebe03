// What kernels say to the machine: the only file with PTX and intrinsics. Each primitive is declared once;
// for nvcc its definition follows, for a host compiler tests/support/cuda_on_cpu.cpp has it. So the text of
// the kernels, which include nothing else, is also compiled for the CPU, where every thread is a fiber.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include <functional>
#endif

#include "dydit/base/bf16.h"
#include "dydit/engine/cuda/errors.h"

#ifdef __CUDACC__
#define DYDIT_PRIMITIVE __device__ __forceinline__
#define DYDIT_DEVICE __device__ __forceinline__
#define DYDIT_BOTH __host__ __device__ inline
#define DYDIT_KERNEL static __global__ void
// At most so many threads a block, at least so many blocks on a multiprocessor.
#define DYDIT_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#else
#define DYDIT_PRIMITIVE
#define DYDIT_DEVICE inline
#define DYDIT_BOTH inline
#define DYDIT_KERNEL static void
#define DYDIT_BOUNDS(threads, blocks)
#endif

namespace dydit::cuda {

inline constexpr int kWarp = 32;

/// Moved by one instruction each.
struct alignas(16) Float4 {
  float x, y, z, w;
};
struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};
struct alignas(8) Bf16x4 {
  uint32_t low, high;  // values 0 and 1, 2 and 3; the first of two is the lower half
};

// Where a thread is.
DYDIT_PRIMITIVE int thread_index();
DYDIT_PRIMITIVE int block_threads();
DYDIT_PRIMITIVE int block_x();
DYDIT_PRIMITIVE int block_y();
DYDIT_PRIMITIVE int block_z();
DYDIT_PRIMITIVE int grid_x();

/// The block's dynamic shared memory, 16-byte aligned.
DYDIT_PRIMITIVE void* shared_memory();

// Calls of the whole block and of the whole warp.
DYDIT_PRIMITIVE void sync_block();
DYDIT_PRIMITIVE void sync_warp();
/// The value of lane (own lane) xor `mask`.
DYDIT_PRIMITIVE float shuffle_xor(float value, int mask);
/// Bit l: whether lane l says so.
DYDIT_PRIMITIVE uint32_t ballot(bool mine);
DYDIT_PRIMITIVE int count_bits(uint32_t bits);

// Matrices in fragments, g = lane / 4, t = lane % 4: registers hold two values of bfloat16.
/// d += a b. a (16, 16): rows g, g + 8, g, g + 8 at columns 2 t, 2 t, 2 t + 8, 2 t + 8 and the next; b (16,
/// 8): rows 2 t and 2 t + 8 and the next of column g; d (16, 8): columns 2 t and the next of rows g, g, g +
/// 8, g + 8.
DYDIT_PRIMITIVE void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
/// Matrices of 8 x 8 from shared memory: lane 8 m + r names row r, 16 bytes, of matrix m; register m receives
/// columns 2 t and 2 t + 1 of row g, transposed: rows 2 t and 2 t + 1 of column g. Of two, lanes 16 and on
/// are not asked.
DYDIT_PRIMITIVE void load_matrices(uint32_t (&out)[4], const void* row);
DYDIT_PRIMITIVE void load_transposed(uint32_t (&out)[4], const void* row);
DYDIT_PRIMITIVE void load_transposed(uint32_t (&out)[2], const void* row);

/// 16 bytes from global to shared memory, both aligned, on their way until the group that they are closed in
/// is waited for.
DYDIT_PRIMITIVE void copy_async(void* shared, const void* global);
DYDIT_PRIMITIVE void close_copies();
/// Until at most so many of this thread's groups, the last ones, are on their way.
template <int kLeft>
DYDIT_PRIMITIVE void wait_for_copies();

// Arithmetic that has an instruction of its own.
/// Two values as bfloat16, rounded to nearest, ties to even; `low` in the lower half.
DYDIT_PRIMITIVE uint32_t pack_bf16(float low, float high);
/// 2^x and x^-1/2, to 2 units in the last place.
DYDIT_PRIMITIVE float fast_exp2(float x);
DYDIT_PRIMITIVE float fast_rsqrt(float x);

DYDIT_BOTH float low_float(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
DYDIT_BOTH float high_float(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }
DYDIT_BOTH constexpr int divided_up(int a, int b) { return (a + b - 1) / b; }

/// Blocks, threads of each and bytes of their shared memory.
struct Grid {
  int x = 1, y = 1, z = 1;
  int threads = kWarp;
  int shared = 0;
};

#ifdef __CUDACC__

inline void check(cudaError_t error) { require(error == cudaSuccess, cudaGetErrorString(error)); }

/// Whether the current device has code of a kernel.
template <typename... Parameters>
bool has_code(void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes;
  const bool has = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess;
  if (!has) cudaGetLastError();  // forgotten
  return has;
}

/// Shared memory that a block can have on the current device.
inline int max_shared_bytes() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Grid& grid, void* stream, const Arguments&... arguments) {
  constexpr int kGiven = 48 * 1024;  // more is asked for
  if (grid.shared > kGiven)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared));
  kernel<<<dim3(grid.x, grid.y, grid.z), grid.threads, grid.shared, static_cast<cudaStream_t>(stream)>>>(
      arguments...);
  check(cudaGetLastError());
}

DYDIT_PRIMITIVE int thread_index() { return static_cast<int>(threadIdx.x); }
DYDIT_PRIMITIVE int block_threads() { return static_cast<int>(blockDim.x); }
DYDIT_PRIMITIVE int block_x() { return static_cast<int>(blockIdx.x); }
DYDIT_PRIMITIVE int block_y() { return static_cast<int>(blockIdx.y); }
DYDIT_PRIMITIVE int block_z() { return static_cast<int>(blockIdx.z); }
DYDIT_PRIMITIVE int grid_x() { return static_cast<int>(gridDim.x); }

DYDIT_PRIMITIVE void* shared_memory() {
  extern __shared__ Words4 shared_words[];
  return shared_words;
}

DYDIT_PRIMITIVE void sync_block() { __syncthreads(); }
DYDIT_PRIMITIVE void sync_warp() { __syncwarp(); }
DYDIT_PRIMITIVE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DYDIT_PRIMITIVE uint32_t ballot(bool mine) { return __ballot_sync(0xffffffffu, mine); }
DYDIT_PRIMITIVE int count_bits(uint32_t bits) { return __popc(bits); }

DYDIT_PRIMITIVE void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DYDIT_DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

DYDIT_PRIMITIVE void load_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
DYDIT_PRIMITIVE void load_transposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
DYDIT_PRIMITIVE void load_transposed(uint32_t (&out)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(shared_address(row))
               : "memory");
}

DYDIT_PRIMITIVE void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global)
               : "memory");
}
DYDIT_PRIMITIVE void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
DYDIT_PRIMITIVE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

DYDIT_PRIMITIVE uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
DYDIT_PRIMITIVE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DYDIT_PRIMITIVE float fast_rsqrt(float x) { return rsqrtf(x); }

#else

template <typename... Parameters>
bool has_code(void (* /*kernel*/)(Parameters...)) {
  return true;
}
int max_shared_bytes();

/// Runs `thread` as every thread of every block, one block after the other.
void run_grid(const Grid& grid, const std::function<void()>& thread);

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Grid& grid, void* /*stream*/,
            const Arguments&... arguments) {
  run_grid(grid, [&] { kernel(arguments...); });
}

void wait_for_all_but(int groups);
template <int kLeft>
void wait_for_copies() {
  wait_for_all_but(kLeft);
}

#endif

}  // namespace dydit::cuda
