// From scores to weights, a KV tile at a time.
#pragma once

#include "backends/cuda/device/softmax.cuh"
#include "backends/cuda/portable/products.cuh"

namespace pagefill::cuda {

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
  if (a.soft_cap.cap != 0) cap_scores(a.soft_cap, scores);
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

// Scores to weights; sums and outputs so far are rescaled to the new maximum. Where four warps share the
// rows, each leaves its quarter of the tile's sum in `quarters`, and add_quarters takes them. All row blocks at
// once, so that one hides the other's latencies.
template <class C, int kBlocks>
__device__ __forceinline__ void softmax(const Arguments& a, float* exchange, float* quarters,
                                        float (&row_max)[C::kRowBlocks][2],
                                        Sums (&sums)[C::kRowBlocks], Outputs<C>& output,
                                        Scores<C>& scores) {
  float rescale[kBlocks][2], reference[kBlocks][2];
  bool changes = false, has_large = false;
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
      has_large |= is_large(reference[m][r]);
    }
  }
  if (!C::kIsStaged && __any_sync(~0u, has_large)) {
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
      for (int i = 0; i < 4 * C::kScoreCols; ++i) {
        float& s = scores[m][i / 4][i % 4];
        s = large_weight(a, s, row_max[m][i % 4 / 2], reference[m][i % 4 / 2]);
      }
    }
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

}  // namespace pagefill::cuda
