// In place of src/backends/cuda/ptx/mma.h: what the kernel for Hopper has of it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

namespace pagefill::cuda::ptx {

// Subnormal results are 0.
inline float exp2_approx(float x) { return x < -126 ? 0.0f : std::exp2(x); }
inline float reciprocal_approx(float x) { return 1 / x; }

}  // namespace pagefill::cuda::ptx
