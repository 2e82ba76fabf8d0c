// Elements of any dtype of queries and caches by pointer and offset.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "pagefill/tensor.h"

namespace pagefill::testing {

inline void store(std::byte* data, DType dtype, int64_t offset, float value) {
  switch (dtype) {
    case DType::kBFloat16:
      reinterpret_cast<bfloat16*>(data)[offset] = bfloat16(value);
      break;
    case DType::kFloat16:
      reinterpret_cast<float16*>(data)[offset] = float16(value);
      break;
    case DType::kInt8:  // NaN, as a filler, is the one number that pagefill never writes
      reinterpret_cast<int8_t*>(data)[offset] =
          std::isnan(value) ? int8_t{-128}
                            : static_cast<int8_t>(std::nearbyint(std::clamp(value, -127.f, 127.f)));
      break;
    case DType::kFloat8E4M3:
      reinterpret_cast<float8_e4m3*>(data)[offset] = float8_e4m3(value);
      break;
    case DType::kFloat8E5M2:
      reinterpret_cast<float8_e5m2*>(data)[offset] = float8_e5m2(value);
      break;
    default:
      reinterpret_cast<float*>(data)[offset] = value;
  }
}

inline double load(const std::byte* data, DType dtype, int64_t offset) {
  switch (dtype) {
    case DType::kBFloat16:
      return static_cast<float>(reinterpret_cast<const bfloat16*>(data)[offset]);
    case DType::kFloat16:
      return static_cast<float>(reinterpret_cast<const float16*>(data)[offset]);
    case DType::kInt8:
      return reinterpret_cast<const int8_t*>(data)[offset];
    case DType::kFloat8E4M3:
      return static_cast<float>(reinterpret_cast<const float8_e4m3*>(data)[offset]);
    case DType::kFloat8E5M2:
      return static_cast<float>(reinterpret_cast<const float8_e5m2*>(data)[offset]);
    default:
      return reinterpret_cast<const float*>(data)[offset];
  }
}

}  // namespace pagefill::testing
