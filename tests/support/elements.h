// Elements of any float dtype by pointer and offset.
#pragma once

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
    default:
      return reinterpret_cast<const float*>(data)[offset];
  }
}

}  // namespace pagefill::testing
