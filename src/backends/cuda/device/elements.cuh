// Elements of any dtype, one at a time, by the conversions of float_types.h: those that the CPU makes.
#pragma once

#include "kv_cache/quantise.h"
#include "pagefill/tensor.h"

namespace pagefill::cuda {

__device__ __forceinline__ float load_element(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kBFloat16:
      return static_cast<float>(bfloat16::from_bits(static_cast<const uint16_t*>(data)[i]));
    case DType::kFloat16:
      return static_cast<float>(float16::from_bits(static_cast<const uint16_t*>(data)[i]));
    default:
      return static_cast<const float*>(data)[i];
  }
}

// Rounded once, to nearest even; in a quantised dtype x / scale, saturated.
__device__ __forceinline__ void store_element(void* data, DType dtype, int64_t i, float x,
                                              float scale) {
  switch (dtype) {
    case DType::kFloat32:
      static_cast<float*>(data)[i] = x;
      return;
    case DType::kBFloat16:
      static_cast<uint16_t*>(data)[i] = bfloat16(x).bits;
      return;
    case DType::kFloat16:
      static_cast<uint16_t*>(data)[i] = float16(x).bits;
      return;
    default:
      break;
  }
  const double quotient = static_cast<double>(x) / static_cast<double>(scale);
  if (dtype == DType::kInt8) {
    static_cast<int8_t*>(data)[i] = quantised<int8_t>(quotient);
  } else if (dtype == DType::kFloat8E4M3) {
    static_cast<uint8_t*>(data)[i] = quantised<float8_e4m3>(quotient).bits;
  } else {
    static_cast<uint8_t*>(data)[i] = quantised<float8_e5m2>(quotient).bits;
  }
}

// Where the dtypes agree, bits.
__device__ __forceinline__ void copy_element(const void* from, DType from_dtype, void* to,
                                             DType to_dtype, int64_t i, float scale) {
  if (from_dtype != to_dtype) {
    store_element(to, to_dtype, i, load_element(from, from_dtype, i), scale);
  } else if (from_dtype == DType::kFloat32) {
    static_cast<uint32_t*>(to)[i] = static_cast<const uint32_t*>(from)[i];
  } else {
    static_cast<uint16_t*>(to)[i] = static_cast<const uint16_t*>(from)[i];
  }
}

__device__ __forceinline__ float chosen_scale(DType cache, int32_t largest_bits) {
  switch (cache) {
    case DType::kInt8:
      return scale_of_largest<int8_t>(largest_bits);
    case DType::kFloat8E4M3:
      return scale_of_largest<float8_e4m3>(largest_bits);
    default:
      return scale_of_largest<float8_e5m2>(largest_bits);
  }
}

}  // namespace pagefill::cuda
