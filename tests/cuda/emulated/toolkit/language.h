// CUDA C++ to the host's compiler: qualifiers, built-in variables, and the functions that are no library's. It stands
// before every file of the emulated library, as nvcc's own does.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "machine/device.h"

#define __CUDACC__ 1
#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
// All threads of a block are one of the host's.
#define __shared__ thread_local

inline constexpr ::emulated::Index& threadIdx = ::emulated::thread_index;
inline constexpr ::emulated::Index& blockIdx = ::emulated::block_index;
inline constexpr ::emulated::Index& blockDim = ::emulated::block_dim;
inline constexpr ::emulated::Index& gridDim = ::emulated::grid_dim;

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

template <typename T>
constexpr T min(T a, std::type_identity_t<T> b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T max(T a, std::type_identity_t<T> b) {
  return a < b ? b : a;
}

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
// The larger one of each pair of 16-bit halves.
inline unsigned __vmaxu2(unsigned x, unsigned y) {
  return std::max(x >> 16, y >> 16) << 16 | std::max(x & 0xffffu, y & 0xffffu);
}
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(unsigned x) { return x == 0 ? 0 : std::countr_zero(x) + 1; }

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T atomicAdd(T* p, std::type_identity_t<T> x) {
  const T before = *p;
  *p = before + x;
  return before;
}
template <typename T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> x) {
  const T before = *p;
  if (before == expected) *p = x;
  return before;
}

inline void __syncthreads() { ::emulated::sync_threads(); }
inline int __syncthreads_or(int predicate) { return ::emulated::sync_threads_or(predicate != 0); }
inline void __syncwarp() { ::emulated::sync_warp(); }

// Masks are of whole warps: anything else does not compile here.
struct WholeWarp {
  unsigned mask;
  WholeWarp(unsigned lanes) : mask(lanes) {
    if (lanes != ~0u) std::abort();
  }
};
template <typename T>
T emulated_shuffle(T value, int lane) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = ::emulated::shuffle(bits, lane);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <typename T>
T __shfl_sync(WholeWarp, T value, int lane) {
  return emulated_shuffle(value, lane & 31);
}
template <typename T>
T __shfl_xor_sync(WholeWarp, T value, int mask) {
  return emulated_shuffle(value, static_cast<int>(threadIdx.x % 32) ^ mask);
}
template <typename T>
T __shfl_up_sync(WholeWarp, T value, int lanes) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return emulated_shuffle(value, lane < lanes ? lane : lane - lanes);
}
inline unsigned __ballot_sync(WholeWarp, bool predicate) { return ::emulated::ballot(predicate); }
inline bool __any_sync(WholeWarp, bool predicate) { return ::emulated::ballot(predicate) != 0; }
inline bool __all_sync(WholeWarp, bool predicate) { return ::emulated::ballot(predicate) == ~0u; }
inline int __reduce_max_sync(WholeWarp mask, int value) {
  for (int step = 16; step > 0; step /= 2) value = max(value, __shfl_xor_sync(mask, value, step));
  return value;
}
