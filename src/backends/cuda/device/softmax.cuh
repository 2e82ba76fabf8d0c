// What all kernels' softmax has in common; scores are in units of log2.
#pragma once

#include "backends/cuda/device/state.cuh"

namespace pagefill::cuda {

// The soft cap. Where |x| < kSmallTanh, as of most scores, a polynomial, off by 4 * 2^-24, relative (5 where x is a
// product). Elsewhere 1 - 2 / (e^2|x| + 1) with the sign of x, off by 8 * 2^-24 at 0.6 and less beyond: 2^-22 of
// ex2.approx counts (1 - tanh^2) / 2 times, 2^-23 of rcp.approx and 2^-24 of the sum 1 - tanh times each, 2^-24 of
// the exponent and of its factor x * (1 - tanh^2) times each, and the last rounding is one of 2^-25.
inline constexpr float kSmallExponent = 2 * CUDART_L2E_F * kSmallTanh;

__device__ __forceinline__ float small_tanh(const SoftCap& c, float score) {
  const float u = __fmul_rn(score, score);
  float p = __fmaf_rn(u, c.odd[4], c.odd[3]);
  p = __fmaf_rn(u, p, c.odd[2]);
  p = __fmaf_rn(u, p, c.odd[1]);
  return __fmul_rn(score, __fmaf_rn(u, p, c.odd[0]));
}

__device__ __forceinline__ float any_tanh(const SoftCap& c, float score) {
  const float exponent = __fmul_rn(score, c.exponent);
  const float e = ptx::exp2_approx(fabsf(exponent));  // inf for the largest
  const float inverse = ptx::reciprocal_approx(__fadd_rn(e, 1.0f));
  const float large = __fmaf_rn(__fmul_rn(c.cap, -2.0f), inverse, c.cap);
  return fabsf(exponent) < kSmallExponent ? small_tanh(c, score) : copysignf(large, exponent);
}

template <int kCols>
__device__ __forceinline__ void cap_scores(const SoftCap& cap, float (&scores)[kCols][4]) {
  float largest = 0;  // leaves NaN out, which either way keeps
#pragma unroll
  for (int col = 0; col < kCols; ++col) {
    const float(&s)[4] = scores[col];
    largest =
        fmaxf(largest, fmaxf(fmaxf(fabsf(s[0]), fabsf(s[1])), fmaxf(fabsf(s[2]), fabsf(s[3]))));
  }
  // The same bits either way: where all are small, nothing else is computed. Two columns at a time: the compiler would
  // begin them all at once, and has no registers for it.
  static_assert(kCols % 2 == 0);
  const bool are_small =
      !__any_sync(~0u, fabsf(__fmul_rn(largest, cap.exponent)) >= kSmallExponent);
#pragma unroll
  for (int first = 0; first < 4 * kCols; first += 8) {
    __syncwarp();
    if (are_small) {
#pragma unroll
      for (int i = first; i < first + 8; ++i)
        scores[i / 4][i % 4] = small_tanh(cap, scores[i / 4][i % 4]);
    } else {
#pragma unroll
      for (int i = first; i < first + 8; ++i)
        scores[i / 4][i % 4] = any_tanh(cap, scores[i / 4][i % 4]);
    }
  }
}

// What weights are relative to is replaced where one would be more than 2^kMaxGrowth: float32 and bfloat16 lose
// nothing by weights up to that, and after the first tile of a segment it is rare.
inline constexpr float kMaxGrowth = 8;

// The product with weight_factor is not rounded before the reference is subtracted, and the reference is: by up to
// 2^-5 below this, and again where weight_shift goes off it. Far beyond, the largest weight would be infinite: of
// float16 from about 2^24 on, of others from 2^31 on.
inline constexpr float kLargeReference = 1 << 20;
__device__ __forceinline__ bool is_large(float reference) {
  return fabsf(reference) >= kLargeReference;
}

// A weight where some row of the warp has a reference as large. Such a row's are taken from rounded products, so that
// the largest one's exponent is weight_shift exactly; others' bits stay.
__device__ __forceinline__ float large_weight(const Arguments& a, float score, float max,
                                              float reference) {
  const float difference = __fsub_rn(__fmul_rn(score, a.weight_factor), reference_of(max));
  return ptx::exp2_approx(is_large(reference)
                              ? __fadd_rn(difference, static_cast<float>(a.weight_shift))
                              : __fmaf_rn(score, a.weight_factor, -reference));
}

// The sum of all weights of each of the thread's rows, at a segment's end.
__device__ __forceinline__ float sum_of_row(float of_thread) {
  const float of_two = __fadd_rn(of_thread, __shfl_xor_sync(~0u, of_thread, 1));
  return __fadd_rn(of_two, __shfl_xor_sync(~0u, of_two, 2));
}

}  // namespace pagefill::cuda
