// The two products of a KV tile, by a consumer warpgroup: scores = queries * keys^T, output += weights * values.
#pragma once

#include "backends/cuda/device/chunks.cuh"
#include "backends/cuda/device/not_finite.cuh"
#include "backends/cuda/ptx/wgmma.h"
#include "backends/cuda/sm90/softmax.cuh"

namespace pagefill::cuda::sm90 {

inline constexpr uint32_t kEightRows = 8 * 128;  // bytes
inline constexpr uint32_t kSixteenElements = 32;

// 64 rows of queries from `queries` on, and the keys of a tile.
template <class C>
__device__ __forceinline__ void begin_scores(const char* queries, const char* keys,
                                             Scores<C>& scores) {
  const uint64_t a = ptx::matrix_descriptor(ptx::shared_address(queries), 16, kEightRows);
  const uint64_t b = ptx::matrix_descriptor(ptx::shared_address(keys), 16, kEightRows);
  ptx::pin(scores);
  ptx::fence_products();
#pragma unroll
  for (int step = 0; step < C::kHeadDim / 16; ++step) {
    const int part = step / 4, within = step % 4 * kSixteenElements;
    ptx::Products<typename C::Element, C::kTileKv>::add_scores(
        scores, ptx::advanced(a, part * C::kQueryPartBytes + within),
        ptx::advanced(b, part * C::kPartBytes + within), step > 0);
  }
  ptx::commit_products();
}

template <class C>
__device__ __forceinline__ void begin_values(const PackedWeights<C>& weights, const char* values,
                                             Outputs<C>& output) {
  const uint64_t b = ptx::matrix_descriptor(ptx::shared_address(values), C::kPartBytes, kEightRows);
  ptx::pin(output);
  ptx::fence_products();
#pragma unroll
  for (int step = 0; step < C::kTileKv / 16; ++step) {
    ptx::Products<typename C::Element, C::kHeadDim>::add_values(
        output, weights[step], ptx::advanced(b, step * 2 * kEightRows));
  }
  ptx::commit_products();
}

// What infinities and NaN among a tile's values add. Rare, so one key after another.
template <class C>
__device__ __forceinline__ void add_not_finite(const PackedWeights<C>& weights, const char* values,
                                               uint32_t first_key, const RowKeys (&rows)[2],
                                               Outputs<C>& output) {
  using T = typename C::Element;
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int key = 0; key < C::kTileKv; ++key) {
    const float2 w = weights_of_key<T>(weights, key);
    const bool takes0 = rows[0].attended.contains(first_key + key);
    const bool takes1 = rows[1].attended.contains(first_key + key);
#pragma unroll
    for (int col = 0; col < C::kOutputCols; ++col) {
      const uint32_t pair =
          *reinterpret_cast<const uint32_t*>(values + col / 8 * C::kPartBytes + key * 128 +
                                             swizzled(col % 8, key) * 16 + lane % 4 * 4);
      add_not_finite_pair<T>(pair, w, takes0, takes1, output[col]);
    }
  }
}

}  // namespace pagefill::cuda::sm90
