// Infinities and NaN among 16-bit values. A value must not reach a row that does not take its key: 0 * inf is NaN.
// Where some row does not, they are multiplied one by one, and are zeros for the tensor cores.
#pragma once

#include "backends/cuda/device/pairs.cuh"

namespace pagefill::cuda {

template <typename T>
inline constexpr uint32_t kExponent = std::is_same_v<T, __half> ? 0x7c00u : 0x7f80u;

// The pair with zeros in place of infinities and NaN.
template <typename T>
__device__ __forceinline__ uint32_t finite_pair(uint32_t pair) {
  constexpr uint32_t kLow = kExponent<T>, kHigh = kExponent<T> << 16;
  if ((pair & kLow) == kLow) pair &= 0xffff0000u;
  if ((pair & kHigh) == kHigh) pair &= 0x0000ffffu;
  return pair;
}

// Whether there is one among the values that this thread, of kThreads, looks through.
template <typename T, int kBytes, int kThreads>
__device__ __forceinline__ bool finds_not_finite(const char* values, int thread) {
  uint32_t largest =
      0;  // of all numbers without their signs, in either half: those have the largest exponent
#pragma unroll 4
  for (int i = thread; i < kBytes / 16; i += kThreads) {
    const uint4 pairs = reinterpret_cast<const uint4*>(values)[i];
    for (uint32_t pair : {pairs.x, pairs.y, pairs.z, pairs.w})
      largest = __vmaxu2(largest, pair & 0x7fff7fffu);
  }
  return largest != finite_pair<T>(largest);
}

// Zeros in their places.
template <typename T, int kBytes, int kThreads>
__device__ __forceinline__ void remove_not_finite(char* values, int thread) {
#pragma unroll 1
  for (int i = thread; i < kBytes / 4; i += kThreads) {
    uint32_t& pair = reinterpret_cast<uint32_t*>(values)[i];
    pair = finite_pair<T>(pair);
  }
}

// The weights of one key in a lane's two rows, from those packed as a product's a.
template <typename T, int kSteps>
__device__ __forceinline__ float2 weights_of_key(const uint32_t (&weights)[kSteps][4], int key) {
  uint32_t low = 0, high = 0;
#pragma unroll
  for (int half = 0; half < 2 * kSteps; ++half) {
    // By masks: of an index the compiler would make an array in local memory.
    const uint32_t mask = half == key / 8 ? ~0u : 0u;
    low |= weights[half / 2][half % 2 * 2] & mask;
    high |= weights[half / 2][half % 2 * 2 + 1] & mask;
  }
  const int lane = threadIdx.x % 32;
  const int owner = (lane & ~3) | (key % 8 / 2), shift = key % 2 * 16;
  return {value_of<T>(__shfl_sync(~0u, low, owner) >> shift & 0xffffu),
          value_of<T>(__shfl_sync(~0u, high, owner) >> shift & 0xffffu)};
}

// What the infinities and NaN of a pair of values add to the rows that take their key.
template <typename T>
__device__ __forceinline__ void add_not_finite_pair(uint32_t pair, float2 weights, bool takes0,
                                                    bool takes1, float (&output)[4]) {
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const uint32_t bits = pair >> (16 * e) & 0xffffu;
    if ((bits & kExponent<T>) != kExponent<T>) continue;
    if (takes0) output[e] = __fmaf_rn(weights.x, value_of<T>(bits), output[e]);
    if (takes1) output[2 + e] = __fmaf_rn(weights.y, value_of<T>(bits), output[2 + e]);
  }
}

}  // namespace pagefill::cuda
