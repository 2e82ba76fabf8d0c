// From scores to weights, a KV tile at a time; in the fragments of products.cuh.
#pragma once

#include <limits>

#include "backends/cuda/device/softmax.cuh"
#include "backends/cuda/sm90/shared.cuh"

namespace pagefill::cuda::sm90 {

// Of each column of 8, lane l of a warp has rows l / 4 and l / 4 + 8 of its 16, at columns 2 * (l % 4) and the
// next: numbers 0 and 1, and 2 and 3.
template <class C>
using Scores = float[C::kScoreCols][4];
template <class C>
using Outputs = float[C::kOutputCols][4];

// Products to scores, where that is not one operation with the subtraction of the maximum.
template <class C>
__device__ __forceinline__ void scale_scores(const Arguments& a, Scores<C>& scores) {
  if (a.score_factor != 1) {
#pragma unroll
    for (int i = 0; i < 4 * C::kScoreCols; ++i) {
      scores[i / 4][i % 4] = __fmul_rn(scores[i / 4][i % 4], a.score_factor);
    }
  }
  if (a.soft_cap.cap != 0) cap_scores(a.soft_cap, scores);
}

// -inf for what does not take part, where nothing else is to be done. By select: what is not there may hold anything.
template <class C>
__device__ __forceinline__ void hide_scores(uint32_t tile_begin, const RowKeys (&rows)[2],
                                            Scores<C>& scores) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const KeyInterval keys = rows[r].attended;
    const uint32_t first = tile_begin + threadIdx.x % 4 * 2 - keys.begin;
    const uint32_t count = keys.end > keys.begin ? keys.end - keys.begin : 0;
#pragma unroll
    for (int i = 0; i < 2 * C::kScoreCols; ++i) {
      float& s = scores[i / 2][2 * r + i % 2];
      if (first + (i / 2 * 8 + i % 2) >= count) s = -kInfinity;
    }
  }
}

// The same, NaN for what lies in no page, and mask_value added to what counts though it is not visible.
template <class C>
__device__ __forceinline__ void mask_scores(const Arguments& a, const KeyNotes& notes,
                                            uint32_t tile_begin, const RowKeys (&rows)[2],
                                            Scores<C>& scores) {
  const int pair = threadIdx.x % 4 * 2;
#pragma unroll
  for (int col = 0; col < C::kScoreCols; ++col) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int in_quarter = col * 8 % C::kQuarterKeys + pair + e % 2;
      float& s = scores[col][e];
      if (!rows[e / 2].visible.contains(tile_begin + col * 8 + pair + e % 2)) {
        s = __fadd_rn(s, a.mask_value);
      }
      if (notes.is_bad[col * 8 / C::kQuarterKeys] >> in_quarter & 1) s = kNaN;
    }
  }
  hide_scores<C>(tile_begin, rows, scores);
}

// Weights in the places of wgmma's a, for each 16 keys.
template <class C>
using PackedWeights = uint32_t[C::kTileKv / 16][4];

template <class C>
__device__ __forceinline__ void pack_step(const Scores<C>& scores, int step,
                                          PackedWeights<C>& weights) {
  using T = typename C::Element;
  const float(&low)[4] = scores[2 * step], (&high)[4] = scores[2 * step + 1];
  weights[step][0] = pack<T>(low[0], low[1]);
  weights[step][1] = pack<T>(low[2], low[3]);
  weights[step][2] = pack<T>(high[0], high[1]);
  weights[step][3] = pack<T>(high[2], high[3]);
}

// A thread's two rows: what their weights are relative to, and the sums of its own keys' weights.
struct Rows2 {
  float max[2] = {-kInfinity, -kInfinity};
  float sum[2] = {};
  // The bits of a score above 0 below which max stays what it is, whatever the other scores; kNone, which none is
  // below (-0 has these bits), where not known.
  static constexpr int kNone = std::numeric_limits<int>::min();
  int limit[2] = {kNone, kNone};
};

// Their states over all four lanes that share a row.
__device__ __forceinline__ void states_of(const Rows2& rows, RowState (&states)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) states[r] = {rows.max[r], sum_of_row(rows.sum[r])};
}

// The largest score of row r, over the four lanes that share it. Four chains: one would be the tile's longest.
// fmaxf leaves NaN out; their weights are NaN all the same.
template <class C>
__device__ __forceinline__ float row_max(const Scores<C>& scores, int r) {
  float max[4];
#pragma unroll
  for (int col = 0; col < C::kScoreCols; ++col) {
    const float two = fmaxf(scores[col][2 * r], scores[col][2 * r + 1]);
    max[col % 4] = col < 4 ? two : fmaxf(max[col % 4], two);
  }
  max[0] = fmaxf(fmaxf(max[0], max[1]), fmaxf(max[2], max[3]));
  max[0] = fmaxf(max[0], __shfl_xor_sync(~0u, max[0], 1));
  return fmaxf(max[0], __shfl_xor_sync(~0u, max[0], 2));
}

// Scores to weights, and their sums in `sum`: of each row four chains, of columns 0, 4, ...; 1, 5, ...
template <class C, typename Weight>
__device__ __forceinline__ void weigh(const Weight& weight, Scores<C>& scores,
                                      PackedWeights<C>& weights, float (&sum)[2]) {
  float sums[2][4];
#pragma unroll
  for (int col = 0; col < C::kScoreCols; ++col) {
    float(&s)[4] = scores[col];
#pragma unroll
    for (int e = 0; e < 4; ++e) s[e] = weight(s[e], e / 2);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float two = __fadd_rn(s[2 * r], s[2 * r + 1]);
      sums[r][col % 4] = col < 4 ? two : __fadd_rn(sums[r][col % 4], two);
    }
    if (col % 2 == 1) pack_step<C>(scores, col / 2, weights);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] = __fadd_rn(__fadd_rn(sums[r][0], sums[r][1]), __fadd_rn(sums[r][2], sums[r][3]));
  }
}

// Whether max may stay in both rows of all lanes. Floating-point numbers above 0 are ordered as integers are, NaN is
// above all limits (with its sign bit it is left out, as by fmaxf), and of three integers the largest takes one
// instruction.
template <class C>
__device__ __forceinline__ bool keeps_max(const Rows2& rows, const Scores<C>& scores) {
  int largest[2][2];
#pragma unroll
  for (int col = 0; col < C::kScoreCols; ++col) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int x = __float_as_int(scores[col][2 * r]), y = __float_as_int(scores[col][2 * r + 1]);
      int& most = largest[r][col % 2];
      most = col < 2 ? max(x, y) : max(max(most, x), y);
    }
  }
  return __all_sync(~0u, max(largest[0][0], largest[0][1]) < rows.limit[0] &&
                             max(largest[1][0], largest[1][1]) < rows.limit[1]);
}

// What is subtracted from a row's scores.
__device__ __forceinline__ float subtrahend(const Arguments& a, float max) {
  return __fsub_rn(reference_of(max), static_cast<float>(a.weight_shift));
}

// A score up to which a row's max stays: its product with weight_factor, rounded, is at most max + max_growth.
__device__ __forceinline__ int limit_of(const Arguments& a, float max, float max_growth) {
  constexpr float kMargin = 1 - 0x1p-18f;  // for the roundings, and reciprocal_approx's
  const float limit = (max + max_growth) * ptx::reciprocal_approx(a.weight_factor) * kMargin;
  const bool is_known = limit > 0 && !is_large(subtrahend(a, max));
  return is_known ? __float_as_int(limit) : Rows2::kNone;
}

// The rows' max with these scores, and what sums and outputs so far are to be multiplied by. True where that of some
// lane is not 1.
template <class C>
__device__ __forceinline__ bool raise_max(const Arguments& a, const Scores<C>& scores, Rows2& rows,
                                          float (&rescale)[2]) {
  const float max_growth = a.weight_shift == 0 ? kMaxGrowth : 0.0f;  // float16 has no room for it
  bool changes = false;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float before = rows.max[r], now = __fmul_rn(row_max<C>(scores, r), a.weight_factor);
    rows.max[r] = now > before + max_growth ? now : before;
    rescale[r] = ptx::exp2_approx(before - reference_of(rows.max[r]));
    rows.sum[r] = __fmul_rn(rows.sum[r], rescale[r]);
    rows.limit[r] = limit_of(a, rows.max[r], max_growth);
    changes |= !(rescale[r] == 1);
  }
  return __any_sync(~0u, changes);
}

// Scores to weights, which are added to the rows' sums. `may_be_large`: the references, which else have limits.
template <class C>
__device__ __forceinline__ void softmax(const Arguments& a, bool may_be_large, Rows2& rows,
                                        Scores<C>& scores, PackedWeights<C>& weights) {
  const float subtracted[2] = {subtrahend(a, rows.max[0]), subtrahend(a, rows.max[1])};
  float sum[2];
  if (may_be_large && __any_sync(~0u, is_large(subtracted[0]) || is_large(subtracted[1]))) {
    weigh<C>([&](float s, int r) { return large_weight(a, s, rows.max[r], subtracted[r]); }, scores,
             weights, sum);
  } else {
    weigh<C>([&](float s,
                 int r) { return ptx::exp2_approx(__fmaf_rn(s, a.weight_factor, -subtracted[r])); },
             scores, weights, sum);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) rows.sum[r] = __fadd_rn(rows.sum[r], sum[r]);
}

template <class C>
__device__ __forceinline__ void rescale_outputs(const float (&rescale)[2], Outputs<C>& output) {
#pragma unroll
  for (int i = 0; i < 4 * C::kOutputCols; ++i) {
    output[i / 4][i % 4] = __fmul_rn(output[i / 4][i % 4], rescale[i % 4 / 2]);
  }
}

}  // namespace pagefill::cuda::sm90
