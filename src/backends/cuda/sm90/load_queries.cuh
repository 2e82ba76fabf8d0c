// The queries of a task, by cp.async.
#pragma once

#include "backends/cuda/sm90/load.cuh"

namespace pagefill::cuda::sm90 {

// The queries of a row tile, zeros behind its rows and behind head_dim. By the last two producer warps.
template <class C>
__device__ __forceinline__ void copy_queries(const Arguments& a, const Task& task, char* queries) {
  constexpr int kChunks = C::kHeadDim / 8, kThreads = kProducerWarps / 2 * 32;
  const int thread = static_cast<int>(threadIdx.x) - kThreads, chunk = thread % kChunks;
  constexpr int kStep = kThreads / kChunks, kBatch = 8;
  static_assert(C::kTileRows % (kStep * kBatch) == 0);
  const bool has_chunk = chunk * 8 < a.keys.dim;
  const auto* const data = static_cast<const char*>(a.query.data) + chunk * 16;
#pragma unroll 1
  for (int first = thread / kChunks; first < C::kTileRows; first += kStep * kBatch) {
    const char* from[kBatch];  // all at once: none waits for the one before it
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const TaskRow row = row_of(a, task, first + i * kStep);
      from[i] = data + 2 * ((int64_t{task.geometry.query_start} + row.token) * a.query.token_stride +
                            row.q_head * a.query.head_stride);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int row = first + i * kStep;
      const bool is_there = row < task.num_rows && has_chunk;
      copy_chunk(queries + place_of(row, chunk, C::kQueryPartBytes),
                 is_there ? from[i] : static_cast<const char*>(a.query.data),
                 a.query.vector_bytes, is_there);
    }
  }
}

}  // namespace pagefill::cuda::sm90
