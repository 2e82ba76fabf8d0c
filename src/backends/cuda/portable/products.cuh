// The two products of a piece: scores += queries * keys^T, and output += weights * values. Each number is
// one chain of additions in a fixed order, whatever rows surround it.
//
// Both ways hold scores and outputs as mma.m16n8k16 does: of each column of 8, lane l has rows l / 4 and
// l / 4 + 8 of the warp's 16, at columns 2 * (l % 4) and the next.
#pragma once

#include "backends/cuda/device/not_finite.cuh"
#include "backends/cuda/portable/stage.cuh"

namespace pagefill::cuda {

// ---- 16-bit numbers: tensor cores.

// Fragments of b are read this many ldmatrix ahead of their products, whose 16 clocks each hide the read's 33.
inline constexpr int kAhead = 2;

template <class C>
using Scores = float[C::kRowBlocks][C::kScoreCols][4];
template <class C>
using Outputs = float[C::kRowBlocks][C::kOutputCols][4];
// Weights in the places of mma's a, for each 16 keys.
template <class C>
using PackedWeights = uint32_t[C::kRowBlocks][kTileKv / 16][4];

// scores += queries * keys of one piece, 64 * kParts dims of it, for the first kBlocks row blocks; of the first
// piece, scores =. `queries` and `keys` are the addresses of the warp's first row and of the piece.
template <class C, int kBlocks, int kParts, bool kIsFirst>
__device__ __forceinline__ void add_scores_mma(Scores<C>& scores, uint32_t queries, uint32_t keys,
                                               int first_col) {
  using T = typename C::Element;
  constexpr int kRowBytes = C::kPiece * 2, kPairs = C::kScoreCols / 2;  // 16 keys a pair of columns
  constexpr int kSteps = 4 * kParts, kCount = kSteps * kPairs;          // 16 dims a step
  const int lane = threadIdx.x % 32;
  // Matrices of a: rows 0-7 and 8-15 of the first 8 dims, then of the next 8. Matrices of b: keys 0-7 at
  // dims 0-7 and 8-15, then keys 8-15. A step's chunks are exchanged with the row's number like the first
  // ones', so that the address of one is that of the first by a constant's exclusive or.
  const int a_row = lane % 16, b_row = first_col * 8 + lane % 8 + lane / 16 * 8;
  queries += a_row * kRowBytes + swizzled(lane / 16, a_row) * 16;
  keys += b_row * kRowBytes + swizzled(lane / 8 % 2, b_row) * 16;
  uint32_t q[2][kBlocks][4], k[kAhead + 1][4];
  const auto load_queries = [&](int step) {
    if (step >= kSteps) return;
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      ptx::load_matrices(q[step % 2][m], (queries ^ step % 4 * 32) + step / 4 * 128 +
                                             m * C::kBlockStep * kRowBytes);
    }
  };
  const auto load_keys = [&](int i) {
    if (i >= kCount) return;
    const int step = i / kPairs;
    ptx::load_matrices(k[i % (kAhead + 1)],
                       (keys ^ step % 4 * 32) + step / 4 * 128 + i % kPairs * 16 * kRowBytes);
  };
  load_queries(0);
#pragma unroll
  for (int i = 0; i < kAhead; ++i) load_keys(i);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int step = i / kPairs, col = i % kPairs * 2;
    load_keys(i + kAhead);
    if (i % kPairs == 0) load_queries(step + 1);
    const uint32_t(&b)[4] = k[i % (kAhead + 1)];
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      if (kIsFirst && step == 0) {
#pragma unroll
        for (int e = 0; e < 4; ++e) scores[m][col][e] = scores[m][col + 1][e] = 0;
      }
      ptx::mma<T>(scores[m][col], q[step % 2][m], b[0], b[1]);
      ptx::mma<T>(scores[m][col + 1], q[step % 2][m], b[2], b[3]);
    }
  }
}

// What infinities and NaN among a piece's values add. Rare, so one key after another.
template <class C, int kPiece>
__device__ __forceinline__ void add_not_finite(float (&output)[C::kOutputCols][4],
                                               const uint32_t (&weights)[kTileKv / 16][4],
                                               const char* values, int first_col,
                                               uint32_t first_key, const KeyInterval (&rows)[2]) {
  using T = typename C::Value;
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int key = 0; key < kTileKv; ++key) {
    const float2 w = weights_of_key<T>(weights, key);
    const bool takes0 = rows[0].contains(first_key + key);
    const bool takes1 = rows[1].contains(first_key + key);
#pragma unroll
    for (int col = 0; col < C::kPieceCols; ++col) {
      const uint32_t pair = *reinterpret_cast<const uint32_t*>(
          values + key * C::kPiece * 2 + swizzled(first_col + col, key) * 16 + lane % 4 * 4);
      add_not_finite_pair<T>(pair, w, takes0, takes1, output[kPiece * C::kPieceCols + col]);
    }
  }
}

// output += weights * values of piece kPiece, for the first kBlocks row blocks and the first kCols columns
// that the warp has.
template <class C, int kPiece, int kBlocks, int kCols>
__device__ __forceinline__ void add_values_mma(Outputs<C>& output, const PackedWeights<C>& weights,
                                               uint32_t values, int first_col) {
  using T = typename C::Value;
  constexpr int kRowBytes = C::kPiece * 2, kPairs = kCols / 2, kCount = kTileKv / 16 * kPairs;
  // Matrices: keys 0-7 and 8-15 at columns 0-7, then at columns 8-15.
  const int row = threadIdx.x % 16, chunk = first_col + threadIdx.x % 32 / 16;
  values += row * kRowBytes + swizzled(chunk, row) * 16;
  uint32_t v[kAhead + 1][4];
  const auto load_values = [&](int i) {
    if (i >= kCount) return;
    const int pair = i % kPairs;
    ptx::load_matrices_transposed(v[i % (kAhead + 1)], (values ^ pair % 4 * 32) + pair / 4 * 128 +
                                                           i / kPairs * 16 * kRowBytes);
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) load_values(i);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int step = i / kPairs, col = kPiece * C::kPieceCols + i % kPairs * 2;
    load_values(i + kAhead);
    const uint32_t(&b)[4] = v[i % (kAhead + 1)];
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      ptx::mma<T>(output[m][col], weights[m][step], b[0], b[1]);
      ptx::mma<T>(output[m][col + 1], weights[m][step], b[2], b[3]);
    }
  }
}

// ---- float32: multiply-adds.

template <class C>
__device__ __forceinline__ void add_scores_float(float (&scores)[C::kScoreCols][4],
                                                 const float* queries, int num_dims,
                                                 const float* keys, int first_col) {
  const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4 * 2;
  const float* const q0 = queries + group * C::kPieceRow;
  const float* const q1 = q0 + 8 * C::kPieceRow;
  const float* const k = keys + (first_col * 8 + pair) * C::kPieceRow;
#pragma unroll 2
  for (int d = 0; d < num_dims; d += 4) {
    const float4 a[2] = {*reinterpret_cast<const float4*>(q0 + d),
                         *reinterpret_cast<const float4*>(q1 + d)};
#pragma unroll
    for (int col = 0; col < C::kScoreCols; ++col) {
      const float* const row = k + col * 8 * C::kPieceRow + d;
      const float4 b[2] = {*reinterpret_cast<const float4*>(row),
                           *reinterpret_cast<const float4*>(row + C::kPieceRow)};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& s = scores[col][e];
        s = __fmaf_rn(a[e / 2].x, b[e % 2].x, s);
        s = __fmaf_rn(a[e / 2].y, b[e % 2].y, s);
        s = __fmaf_rn(a[e / 2].z, b[e % 2].z, s);
        s = __fmaf_rn(a[e / 2].w, b[e % 2].w, s);
      }
    }
  }
}

// `weights` begins at the warp's rows. Where some row does not see some key, `must_select`: its value is
// then left out, whatever it is.
template <class C, int kPiece>
__device__ __forceinline__ void add_values_float(float (&output)[C::kOutputCols][4],
                                                 const float* weights, const float* values,
                                                 int first_col, bool must_select,
                                                 uint32_t first_key, const KeyInterval (&rows)[2]) {
  const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4 * 2;
  const float* const w0 = weights + group * C::kWeightsRow;
  const float* const w1 = w0 + 8 * C::kWeightsRow;
#pragma unroll 2
  for (int key = 0; key < kTileKv; ++key) {
    const bool sees[2] = {!must_select || rows[0].contains(first_key + key),
                          !must_select || rows[1].contains(first_key + key)};
    const float w[2] = {w0[key], w1[key]};
    const float* const row = values + key * C::kPieceRow + first_col * 8 + pair;
#pragma unroll
    for (int col = 0; col < C::kPieceCols; ++col) {
      const float2 v = *reinterpret_cast<const float2*>(row + col * 8);
      float(&o)[4] = output[kPiece * C::kPieceCols + col];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        o[2 * r] = __fmaf_rn(w[r], sees[r] ? v.x : 0.0f, o[2 * r]);
        o[2 * r + 1] = __fmaf_rn(w[r], sees[r] ? v.y : 0.0f, o[2 * r + 1]);
      }
    }
  }
}

}  // namespace pagefill::cuda
