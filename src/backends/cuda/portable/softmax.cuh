// From scores to weights, a KV tile at a time.
#pragma once

#include "backends/cuda/device/state.cuh"
#include "backends/cuda/portable/products.cuh"

namespace pagefill::cuda {

// Partial sums of weights: of each quarter of the tile's keys, so that four warps that share a tile add in
// the order in which one warp does.
template <class C>
struct Sums {
  static constexpr int kCount = 4 / C::kKeyWarps;
  float of[kCount][2] = {};
};

// Products to scores in units of log2: scales, cap.
template <class C>
__device__ __forceinline__ void scale_scores(const Arguments& a, const TileTable& table,
                                             int first_key, float (&scores)[C::kScoreCols][4]) {
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

// Scores to weights; sums and outputs so far are rescaled to the new maximum.
template <class C>
__device__ __forceinline__ void softmax(const Arguments& a, float* exchange, float (&row_max)[2],
                                        Sums<C>& sums, float (&output)[C::kOutputCols][4],
                                        float (&scores)[C::kScoreCols][4]) {
  float max[2], rescale[2], reference[2];
  tile_max<C>(scores, exchange, max);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float before = row_max[r];
    row_max[r] = fmaxf(before, max[r]);
    reference[r] = reference_of(row_max[r]);
    rescale[r] = ptx::exp2_approx(before - reference[r]);
    reference[r] = __fsub_rn(reference[r], static_cast<float>(a.weight_shift));
  }
#pragma unroll
  for (int col = 0; col < C::kScoreCols; ++col) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      scores[col][e] = ptx::exp2_approx(__fsub_rn(scores[col][e], reference[e / 2]));
    }
  }
#pragma unroll
  for (int i = 0; i < Sums<C>::kCount; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float left = __fadd_rn(scores[2 * i][2 * r], scores[2 * i][2 * r + 1]);
      const float right = __fadd_rn(scores[2 * i + 1][2 * r], scores[2 * i + 1][2 * r + 1]);
      sums.of[i][r] = __fmaf_rn(sums.of[i][r], rescale[r], __fadd_rn(left, right));
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
template <class C>
__device__ __forceinline__ void sum_of_row(const Sums<C>& sums, float* exchange, float (&sum)[2]) {
  const int lane = threadIdx.x % 32;
  float quarters[2][4];
#pragma unroll
  for (int i = 0; i < Sums<C>::kCount; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float x = sums.of[i][r];
      x = __fadd_rn(x, __shfl_xor_sync(~0u, x, 1));
      quarters[r][i] = __fadd_rn(x, __shfl_xor_sync(~0u, x, 2));
    }
  }
  if constexpr (C::kKeyWarps > 1) {
    __syncthreads();  // maxima that are exchanged in the same place have been read
    const int warp = threadIdx.x / 32;
    if (lane % 4 == 0) {
      exchange[warp * kWarpRows + lane / 4] = quarters[0][0];
      exchange[warp * kWarpRows + lane / 4 + 8] = quarters[1][0];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int w = 0; w < 4; ++w) quarters[r][w] = exchange[w * kWarpRows + lane / 4 + 8 * r];
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] = __fadd_rn(__fadd_rn(quarters[r][0], quarters[r][1]),
                       __fadd_rn(quarters[r][2], quarters[r][3]));
  }
}

}  // namespace pagefill::cuda
