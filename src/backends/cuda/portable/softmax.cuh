// From scores to weights, a KV tile at a time.
#pragma once

#include "backends/cuda/device/state.cuh"
#include "backends/cuda/portable/products.cuh"

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

// Products to scores: scales, cap. In units of log2.
template <class C>
__device__ __forceinline__ void scale_scores(const Arguments& a, const TileTable& table,
                                             int first_key, float (&scores)[C::kScoreCols][4]) {
  if constexpr (C::kIsStaged) {
    const float* const scales = table.key_scale + first_key + threadIdx.x % 4 * 2;
#pragma unroll
    for (int col = 0; col < C::kScoreCols; ++col) {
      const float factor[2] = {__fmul_rn(scales[col * 8], a.score_factor),
                               __fmul_rn(scales[col * 8 + 1], a.score_factor)};
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[col][e] = __fmul_rn(scores[col][e], factor[e % 2]);
    }
  } else if (a.score_factor != 1) {
#pragma unroll
    for (int col = 0; col < C::kScoreCols; ++col) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[col][e] = __fmul_rn(scores[col][e], a.score_factor);
    }
  }
  if (a.soft_cap.cap == 0) return;
  float largest = 0;  // leaves NaN out, which either way keeps
#pragma unroll
  for (int col = 0; col < C::kScoreCols; ++col) {
    const float(&s)[4] = scores[col];
    largest =
        fmaxf(largest, fmaxf(fmaxf(fabsf(s[0]), fabsf(s[1])), fmaxf(fabsf(s[2]), fabsf(s[3]))));
  }
  // The same bits either way: where all are small, nothing else is computed.
  if (!__any_sync(~0u, fabsf(__fmul_rn(largest, a.soft_cap.exponent)) >= kSmallExponent)) {
#pragma unroll
    for (int col = 0; col < C::kScoreCols; ++col) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[col][e] = small_tanh(a.soft_cap, scores[col][e]);
    }
  } else {
#pragma unroll
    for (int col = 0; col < C::kScoreCols; ++col) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[col][e] = any_tanh(a.soft_cap, scores[col][e]);
    }
  }
}

// -inf for what does not take part, NaN for what lies in no page, mask_value added to what counts though it
// is not visible. By select: what is not there may hold anything.
template <class C>
__device__ __forceinline__ void mask_scores(const Arguments& a, const TileTable& table,
                                            uint32_t tile_begin, int first_key,
                                            const RowKeys (&rows)[2],
                                            float (&scores)[C::kScoreCols][4]) {
  const int pair = threadIdx.x % 4 * 2;
#pragma unroll
  for (int col = 0; col < C::kScoreCols; ++col) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int in_tile = first_key + col * 8 + pair + e % 2;
      const uint32_t key = tile_begin + in_tile;
      const RowKeys& row = rows[e / 2];
      float& s = scores[col][e];
      if (!row.visible.contains(key)) s = __fadd_rn(s, a.mask_value);
      if (table.is_bad[in_tile / 32] >> (in_tile % 32) & 1) s = kNaN;
      if (!row.attended.contains(key)) s = -kInfinity;
    }
  }
}

// The largest score of each of the thread's two rows in the tile, over all warps that share them. fmaxf
// leaves NaN out; their weights are NaN all the same.
template <class C>
__device__ __forceinline__ void tile_max(const float (&scores)[C::kScoreCols][4], float* exchange,
                                         float (&max)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    max[r] = -kInfinity;
#pragma unroll
    for (int col = 0; col < C::kScoreCols; ++col) {
      max[r] = fmaxf(max[r], fmaxf(scores[col][2 * r], scores[col][2 * r + 1]));
    }
    max[r] = fmaxf(max[r], __shfl_xor_sync(~0u, max[r], 1));
    max[r] = fmaxf(max[r], __shfl_xor_sync(~0u, max[r], 2));
  }
  if constexpr (C::kKeyWarps > 1) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane % 4 == 0) {
      exchange[warp * kWarpRows + lane / 4] = max[0];
      exchange[warp * kWarpRows + lane / 4 + 8] = max[1];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int w = 0; w < C::kKeyWarps; ++w) {
        max[r] = fmaxf(max[r], exchange[w * kWarpRows + lane / 4 + 8 * r]);
      }
    }
  }
}

// What a thread knows of the sums of its two rows' weights: of its own keys, all warps' where they share the
// row. A tile's weights are added as (quarter 0 + quarter 1) + (quarter 2 + quarter 3) of its keys, whoever has
// computed them.
struct Sums {
  float of[2] = {};
};

// The sum of a thread's weights of one row in the 16 keys of two columns.
template <class C>
__device__ __forceinline__ float quarter_sum(const float (&weights)[C::kScoreCols][4], int quarter,
                                             int r) {
  const float left = __fadd_rn(weights[2 * quarter][2 * r], weights[2 * quarter][2 * r + 1]);
  const float right =
      __fadd_rn(weights[2 * quarter + 1][2 * r], weights[2 * quarter + 1][2 * r + 1]);
  return __fadd_rn(left, right);
}

// What weights are relative to is replaced where one would be more than 2^kMaxGrowth: float32 and bfloat16 lose
// nothing by weights up to that, and after the first tile of a segment it is rare.
inline constexpr float kMaxGrowth = 8;

// The product with weight_factor is not rounded before the reference is subtracted, and the reference is: by up to
// 2^-5 below this, and again where weight_shift goes off it. Far beyond, the largest weight would be infinite: of
// float16 from about 2^24 on, of others from 2^31 on.
inline constexpr float kLargeReference = 1 << 20;

// Weights where some row of the warp has a reference as large. Such a row's are taken from rounded products, so that
// the largest one's exponent is weight_shift exactly; others' bits stay.
template <class C, int kBlocks>
__device__ __forceinline__ void large_weights(const Arguments& a,
                                              const float (&row_max)[C::kRowBlocks][2],
                                              const float (&reference)[kBlocks][2],
                                              Scores<C>& scores) {
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int col = 0; col < C::kScoreCols; ++col) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& s = scores[m][col][e];
        const float difference =
            __fsub_rn(__fmul_rn(s, a.weight_factor), reference_of(row_max[m][e / 2]));
        s = ptx::exp2_approx(fabsf(reference[m][e / 2]) >= kLargeReference
                                 ? __fadd_rn(difference, static_cast<float>(a.weight_shift))
                                 : __fmaf_rn(s, a.weight_factor, -reference[m][e / 2]));
      }
    }
  }
}

// Scores to weights; sums and outputs so far are rescaled to the new maximum. Where four warps share the
// rows, each leaves its quarter of the tile's sum in `quarters`, and add_quarters takes them. All row blocks at
// once, so that one hides the other's latencies.
template <class C, int kBlocks>
__device__ __forceinline__ void softmax(const Arguments& a, float* exchange, float* quarters,
                                        float (&row_max)[C::kRowBlocks][2],
                                        Sums (&sums)[C::kRowBlocks], Outputs<C>& output,
                                        Scores<C>& scores) {
  float rescale[kBlocks][2], reference[kBlocks][2];
  bool changes = false, is_large = false;
  const float max_growth = a.weight_shift == 0 ? kMaxGrowth : 0.0f;  // float16 has no room for it
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
    float max[2];
    tile_max<C>(scores[m], exchange, max);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float before = row_max[m][r], now = __fmul_rn(max[r], a.weight_factor);
      row_max[m][r] = now > before + max_growth ? now : before;
      reference[m][r] = reference_of(row_max[m][r]);
      rescale[m][r] = ptx::exp2_approx(before - reference[m][r]);
      reference[m][r] = __fsub_rn(reference[m][r], static_cast<float>(a.weight_shift));
      changes |= !(rescale[m][r] == 1);
      is_large |= fabsf(reference[m][r]) >= kLargeReference;
    }
  }
  if (!C::kIsStaged && __any_sync(~0u, is_large)) {
    large_weights<C, kBlocks>(a, row_max, reference, scores);
  } else {
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
      for (int col = 0; col < C::kScoreCols; ++col) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& s = scores[m][col][e];
          s = ptx::exp2_approx(__fmaf_rn(s, a.weight_factor, -reference[m][e / 2]));
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float& sum = sums[m].of[r];
      sum = __fmul_rn(sum, rescale[m][r]);
      if constexpr (C::kKeyWarps > 1) {
        quarters[r * kThreads + threadIdx.x] = quarter_sum<C>(scores[m], 0, r);
      } else {
        const float low =
            __fadd_rn(quarter_sum<C>(scores[m], 0, r), quarter_sum<C>(scores[m], 1, r));
        const float high =
            __fadd_rn(quarter_sum<C>(scores[m], 2, r), quarter_sum<C>(scores[m], 3, r));
        sum = __fadd_rn(sum, __fadd_rn(low, high));
      }
    }
  }
  // A reference that stays is a factor of 1 exactly: left out for a whole warp, it changes no bit.
  if (!__any_sync(~0u, changes)) return;
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int col = 0; col < C::kOutputCols; ++col) {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        output[m][col][e] = __fmul_rn(output[m][col][e], rescale[m][e / 2]);
    }
  }
}

// Behind a barrier: the tile's sum from its quarters.
template <class C>
__device__ __forceinline__ void add_quarters(const float* quarters, Sums& sums) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float* const q = quarters + r * kThreads + lane;
    sums.of[r] = __fadd_rn(sums.of[r], __fadd_rn(__fadd_rn(q[0], q[32]), __fadd_rn(q[64], q[96])));
  }
}

// Weights times the scales of their values.
template <class C>
__device__ __forceinline__ void scale_weights(const TileTable& table, int first_key,
                                              float (&weights)[C::kScoreCols][4]) {
  const float* const scales = table.value_scale + first_key + threadIdx.x % 4 * 2;
#pragma unroll
  for (int col = 0; col < C::kScoreCols; ++col) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      weights[col][e] = __fmul_rn(weights[col][e], scales[col * 8 + e % 2]);
  }
}

// What a row does not see may have any scale.
template <class C>
__device__ __forceinline__ void remove_unseen(uint32_t tile_begin, int first_key,
                                              const RowKeys (&rows)[2],
                                              float (&weights)[C::kScoreCols][4]) {
  const uint32_t key = tile_begin + first_key + threadIdx.x % 4 * 2;
#pragma unroll
  for (int col = 0; col < C::kScoreCols; ++col) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (!rows[e / 2].attended.contains(key + col * 8 + e % 2)) weights[col][e] = 0;
    }
  }
}

// The sum of all weights of each of the thread's rows, at a segment's end.
__device__ __forceinline__ float sum_of_row(float of_thread) {
  const float of_two = __fadd_rn(of_thread, __shfl_xor_sync(~0u, of_thread, 1));
  return __fadd_rn(of_two, __shfl_xor_sync(~0u, of_two, 2));
}

}  // namespace pagefill::cuda
