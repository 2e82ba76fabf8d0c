// What a row knows of the keys so far: the largest score, the sum of weights, and weighted values. Forward
// and combine share every operation, written with intrinsics that the compiler may not fuse otherwise in
// one of them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>

#include <limits>
#include <type_traits>

#include "backends/cuda/arguments.h"
#include "backends/cuda/ptx/mma.h"

namespace pagefill::cuda {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct RowState {
  float max = -kInfinity;  // of the scores, in units of log2, or up to kMaxGrowth less
  float sum = 0;           // of 2^(score - max + weight_shift)
};

// What scores are subtracted from: a row that has seen nothing would get inf - inf.
__device__ __forceinline__ float reference_of(float max) { return max == -kInfinity ? 0.0f : max; }

// Takes `part` into `total`; the values of total and part are to be multiplied by the two factors.
__device__ __forceinline__ void merge(RowState& total, const RowState& part, float& total_factor,
                                      float& part_factor) {
  const float max = fmaxf(total.max, part.max), reference = reference_of(max);
  total_factor = ptx::exp2_approx(total.max - reference);
  part_factor = ptx::exp2_approx(part.max - reference);
  total.sum = __fmaf_rn(total.sum, total_factor, __fmul_rn(part.sum, part_factor));
  total.max = max;
}

__device__ __forceinline__ float merge_value(float total, float part, float total_factor,
                                             float part_factor) {
  return __fmaf_rn(total, total_factor, __fmul_rn(part, part_factor));
}

// What makes a row's values its output.
struct Ending {
  float factor;
  float lse;  // -inf: nothing was seen, or weighs anything
};

__device__ __forceinline__ Ending end_row(const Arguments& a, RowState row, int q_head) {
  float values_factor = 1;
  if (a.sinks != nullptr) {
    const float sink = __fmul_rn(a.sinks[q_head * a.sinks_stride], CUDART_L2E_F);
    const float max = fmaxf(row.max, sink), reference = reference_of(max);
    values_factor = ptx::exp2_approx(row.max - reference);
    // 2^weight_shift times the weight: a power of two, exactly.
    const float weight =
        __fmul_rn(ptx::exp2_approx(sink - reference), scalbnf(1.0f, a.weight_shift));
    row.sum = __fmaf_rn(row.sum, values_factor, weight);
    row.max = max;
  }
  if (row.sum == 0) return {0, -kInfinity};
  return {
      __fdiv_rn(values_factor, row.sum),
      __fmul_rn(__fadd_rn(row.max, __fsub_rn(log2f(row.sum), static_cast<float>(a.weight_shift))),
                CUDART_LN2_F)};
}

// NaN has one encoding. Adding +0 makes both zeros one. Beside a sink the factor may be 0, and 0 * v a NaN.
__device__ __forceinline__ float end_value(float value, Ending end) {
  return end.lse == -kInfinity ? 0.0f : __fmaf_rn(value, end.factor, 0.0f);
}

__device__ __forceinline__ void store_lse(const Arguments& a, int64_t token, int q_head,
                                          float lse) {
  if (a.lse.data == nullptr) return;
  static_cast<float*>(a.lse.data)[token * a.lse.token_stride + q_head * a.lse.head_stride] =
      lse == lse ? lse : kNaN;
}

__device__ __forceinline__ uint16_t round_to_16_bits(float x, bool is_bfloat16) {
  if (is_bfloat16) return x == x ? __bfloat16_as_ushort(__float2bfloat16_rn(x)) : 0x7fc0;
  return x == x ? __half_as_ushort(__float2half_rn(x)) : 0x7e00;
}

// Two neighbouring elements of an output row; T is its dtype.
template <typename T>
__device__ __forceinline__ void store_pair(const Rows& output, int64_t at, float x, float y) {
  if constexpr (std::is_same_v<T, float>) {
    float* const out = static_cast<float*>(output.data) + at;
    out[0] = x == x ? x : kNaN;
    out[1] = y == y ? y : kNaN;
  } else {
    uint16_t* const out = static_cast<uint16_t*>(output.data) + at;
    constexpr bool kIsBFloat16 = std::is_same_v<T, __nv_bfloat16>;
    const uint16_t low = round_to_16_bits(x, kIsBFloat16), high = round_to_16_bits(y, kIsBFloat16);
    if (output.vector_bytes >= 4) {
      *reinterpret_cast<uint32_t*>(out) = low | static_cast<uint32_t>(high) << 16;
    } else {
      out[0] = low;
      out[1] = high;
    }
  }
}

// Calls store(T()) with the output's dtype: Element where it is a 16-bit one, else what the call says.
template <typename Element, typename Store>
__device__ __forceinline__ void with_output_type(DType dtype, const Store& store) {
  if constexpr (!std::is_same_v<Element, float>) {
    store(Element());
  } else if (dtype == DType::kBFloat16) {
    store(__nv_bfloat16());
  } else if (dtype == DType::kFloat16) {
    store(__half());
  } else {
    store(0.0f);
  }
}

__device__ __forceinline__ int64_t output_offset(const Arguments& a, int64_t token, int q_head) {
  return token * a.output.token_stride + q_head * a.output.head_stride;
}

// The rows of tokens [begin, end), all heads: what lengths that make no sense come to.
__device__ inline void write_nan(const Arguments& a, int64_t first_token, int64_t num_rows,
                                 int first_head, int num_heads, int64_t thread, int64_t step) {
  const int pairs = a.values.dim / 2;
  for (int64_t i = thread; i < num_rows * num_heads * pairs; i += step) {
    const int64_t row = i / pairs, token = first_token + row / num_heads;
    const int q_head = first_head + static_cast<int>(row % num_heads);
    const int column = static_cast<int>(i % pairs) * 2;
    with_output_type<float>(a.query_dtype, [&](auto type) {
      store_pair<decltype(type)>(a.output, output_offset(a, token, q_head) + column, kNaN, kNaN);
    });
    if (column == 0) store_lse(a, token, q_head, kNaN);
  }
}

}  // namespace pagefill::cuda
