// From scores to weights, a KV tile at a time.
#pragma once

#include "backends/cuda/device/state.cuh"
#include "backends/cuda/portable/products.cuh"

namespace pagefill::cuda {

// Products to scores: scales, cap. In units of log2, but for what a.weight_factor is left to do.
template <class C>
__device__ __forceinline__ void scale_scores(const Arguments& a, const TileTable& table,
                                             int first_key, float (&scores)[C::kScoreCols][4]) {
  if (a.weight_factor != 1) return;
  const int pair = threadIdx.x % 4 * 2;
#pragma unroll
  for (int col = 0; col < C::kScoreCols; ++col) {
    if constexpr (C::kIsStaged) {
      const float* const scale = table.key_scale + first_key + col * 8 + pair;
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[col][e] = __fmul_rn(scores[col][e], scale[e % 2]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) scores[col][e] = __fmul_rn(scores[col][e], a.score_factor);
  }
  if (a.cap_factor == 0) return;
#pragma unroll
  for (int col = 0; col < C::kScoreCols; ++col) {
#pragma unroll
    for (int e = 0; e < 4; ++e) scores[col][e] = __fmul_rn(tanhf(scores[col][e]), a.cap_factor);
  }
}

// -inf for what does not take part, NaN for what lies in no page, mask_value added to what counts though it
// is not visible. By select: what is not there may hold anything.
template <class C>
__device__ __forceinline__ void mask_scores(const Arguments& a, const TileTable& table,
                                            int tile_begin, int first_key, const RowKeys (&rows)[2],
                                            float (&scores)[C::kScoreCols][4]) {
  const int pair = threadIdx.x % 4 * 2;
#pragma unroll
  for (int col = 0; col < C::kScoreCols; ++col) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int in_tile = first_key + col * 8 + pair + e % 2, key = tile_begin + in_tile;
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

// Scores to weights; sums and outputs so far are rescaled to the new maximum. Where four warps share the
// rows, each leaves its quarter of the tile's sum in `quarters`, and add_quarters takes them.
template <class C>
__device__ __forceinline__ void softmax(const Arguments& a, float* exchange, float* quarters,
                                        float (&row_max)[2], Sums& sums,
                                        float (&output)[C::kOutputCols][4],
                                        float (&scores)[C::kScoreCols][4]) {
  float max[2], rescale[2], reference[2];
  tile_max<C>(scores, exchange, max);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float before = row_max[r];
    row_max[r] = fmaxf(before, __fmul_rn(max[r], a.weight_factor));
    reference[r] = reference_of(row_max[r]);
    rescale[r] = ptx::exp2_approx(before - reference[r]);
    reference[r] = __fsub_rn(reference[r], static_cast<float>(a.weight_shift));
  }
#pragma unroll
  for (int col = 0; col < C::kScoreCols; ++col) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      scores[col][e] =
          ptx::exp2_approx(__fmaf_rn(scores[col][e], a.weight_factor, -reference[e / 2]));
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if constexpr (C::kKeyWarps > 1) {
      quarters[r * kThreads + threadIdx.x] = quarter_sum<C>(scores, 0, r);
      sums.of[r] = __fmul_rn(sums.of[r], rescale[r]);
    } else {
      const float low = __fadd_rn(quarter_sum<C>(scores, 0, r), quarter_sum<C>(scores, 1, r));
      const float high = __fadd_rn(quarter_sum<C>(scores, 2, r), quarter_sum<C>(scores, 3, r));
      sums.of[r] = __fadd_rn(__fmul_rn(sums.of[r], rescale[r]), __fadd_rn(low, high));
    }
  }
  // A maximum that stays is a factor of 1 exactly: left out for a whole warp, it changes no bit.
  if (!__any_sync(~0u, !(rescale[0] == 1 && rescale[1] == 1))) return;
#pragma unroll
  for (int col = 0; col < C::kOutputCols; ++col) {
#pragma unroll
    for (int e = 0; e < 4; ++e) output[col][e] = __fmul_rn(output[col][e], rescale[e / 2]);
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

// Weights times the scales of their values. What a row does not see may have any scale.
template <class C>
__device__ __forceinline__ void scale_weights(const TileTable& table, int tile_begin, int first_key,
                                              bool must_select, const RowKeys (&rows)[2],
                                              float (&weights)[C::kScoreCols][4]) {
  const int pair = threadIdx.x % 4 * 2;
#pragma unroll
  for (int col = 0; col < C::kScoreCols; ++col) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int in_tile = first_key + col * 8 + pair + e % 2;
      const bool takes_part = !must_select || rows[e / 2].attended.contains(tile_begin + in_tile);
      weights[col][e] = takes_part ? __fmul_rn(weights[col][e], table.value_scale[in_tile]) : 0.0f;
    }
  }
}

// The sum of all weights of each of the thread's rows, at a segment's end.
__device__ __forceinline__ float sum_of_row(float of_thread) {
  const float of_two = __fadd_rn(of_thread, __shfl_xor_sync(~0u, of_thread, 1));
  return __fadd_rn(of_two, __shfl_xor_sync(~0u, of_two, 2));
}

}  // namespace pagefill::cuda
