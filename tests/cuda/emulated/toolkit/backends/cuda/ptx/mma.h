// In place of src/backends/cuda/ptx/mma.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "machine/device.h"

namespace pagefill::cuda::ptx {

template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulated::multiply_fragments(
      std::is_same_v<T, __nv_bfloat16> ? emulated::Element::kBFloat16 : emulated::Element::kFloat16,
      d, a, b0, b1);
}
inline void load_matrices(uint32_t (&r)[4], uint32_t address) {
  emulated::load_matrices(r, address, false);
}
inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  emulated::load_matrices(r, address, true);
}

// Subnormal results are 0.
inline float exp2_approx(float x) { return x < -126 ? 0.0f : std::exp2(x); }
inline float reciprocal_approx(float x) { return 1 / x; }

}  // namespace pagefill::cuda::ptx
