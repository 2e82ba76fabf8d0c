// The queries of a task, by cp.async.
#pragma once

#include "backends/cuda/sm90/load.cuh"

namespace pagefill::cuda::sm90 {

// The queries of a row tile, zeros behind its rows and behind head_dim. By the last two producer warps.
template <class C>
__device__ __forceinline__ void copy_queries(const Arguments& a, const Task& task, char* queries) {
  constexpr int kChunks = C::kHeadDim / 8, kThreads = kProducerWarps / 2 * 32;
  const int thread = static_cast<int>(threadIdx.x) - kThreads, chunk = thread % kChunks;
  constexpr int kStep = kThreads / kChunks;
  const int64_t token_bytes = 2 * a.query.token_stride, head_bytes = 2 * a.query.head_stride;
  const TaskRow first = row_of(a, task, thread / kChunks);
  int head = first.q_head - task.kv_head * a.group;
  const int step_tokens = kStep / a.group, step_heads = kStep % a.group;
  const auto* const data = static_cast<const char*>(a.query.data);
  int64_t at = (int64_t{task.geometry.query_start} + first.token) * token_bytes +
               first.q_head * head_bytes + chunk * 16;
#pragma unroll 2
  for (int row = thread / kChunks; row < C::kTileRows; row += kStep) {
    const bool is_there = row < task.num_rows && chunk * 8 < a.keys.dim;
    copy_chunk(queries + place_of(row, chunk, C::kQueryPartBytes), is_there ? data + at : data,
               a.query.vector_bytes, is_there);
    at += step_tokens * token_bytes + step_heads * head_bytes;
    head += step_heads;
    if (head >= a.group) {
      head -= a.group;
      at += token_bytes - a.group * head_bytes;
    }
  }
}

}  // namespace pagefill::cuda::sm90
