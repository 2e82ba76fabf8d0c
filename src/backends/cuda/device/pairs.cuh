// Two 16-bit numbers in one register.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace pagefill::cuda {

template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t pack<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// NaN has one encoding, and 0x7fff of what pack makes of it is another one.
template <typename T, int kPairs>
__device__ __forceinline__ void make_nan_one(uint32_t (&pairs)[kPairs]) {
  constexpr uint32_t kOne = std::is_same_v<T, __nv_bfloat16> ? 0x7fc0 : 0x7e00;
  uint32_t carries = 0;
#pragma unroll
  for (uint32_t pair : pairs) carries |= (pair & 0x7fff7fff) + 0x00010001;
  if ((carries & 0x80008000) == 0) return;
#pragma unroll
  for (uint32_t& pair : pairs) {
    if ((pair & 0xffff) == 0x7fff) pair = (pair & 0xffff0000) | kOne;
    if (pair >> 16 == 0x7fff) pair = (pair & 0xffff) | kOne << 16;
  }
}

template <typename T>
__device__ __forceinline__ float value_of(uint32_t bits);
template <>
__device__ __forceinline__ float value_of<__nv_bfloat16>(uint32_t bits) {
  return __uint_as_float(bits << 16);
}
template <>
__device__ __forceinline__ float value_of<__half>(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

}  // namespace pagefill::cuda
