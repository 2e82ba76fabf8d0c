// The end of a segment and of a task: merging, partial states, output.
#pragma once

#include "backends/cuda/sm90/products.cuh"

namespace pagefill::cuda::sm90 {

// What the segments so far have come to: a thread's two rows. Their accumulators lie in `memory` from
// `memory[thread]` on, a column every kConsumerThreads.
template <class C>
struct Totals {
  float4* memory;
  RowState rows[2];

  __device__ Totals(const Arguments& a, SharedMemory<C>& shared, int thread)
      : memory((C::kTotalsAreShared
                    ? reinterpret_cast<float4*>(shared.totals)
                    : reinterpret_cast<float4*>(a.workspace.totals) +
                          int64_t{blockIdx.x} * (C::kOutputCols * C::kConsumerThreads)) +
               thread) {}
};

// Takes a segment, of which accumulators lie in `output`, together with those before it: their states into
// totals.rows, and take(col, numbers) gets the accumulators, a column of 8 at a time.
template <class C, typename Take>
__device__ __forceinline__ void merge_segment(const RowState (&part)[2], Totals<C>& totals,
                                              const Outputs<C>& output, const Take& take) {
  float total_factor[2], part_factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) merge(totals.rows[r], part[r], total_factor[r], part_factor[r]);
#pragma unroll
  for (int col = 0; col < C::kOutputCols; ++col) {
    if (col % 4 == 0)
      __syncwarp();  // the compiler would read all at once, and has no registers for it
    const float4 of_col = totals.memory[col * C::kConsumerThreads];
    const float so_far[4] = {of_col.x, of_col.y, of_col.z, of_col.w};
    float merged[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      merged[e] = merge_value(so_far[e], output[col][e], total_factor[e / 2], part_factor[e / 2]);
    }
    take(col, merged);
  }
}

// Calls write(r, row) for both rows of the thread, where the task has them.
template <typename Write>
__device__ __forceinline__ void for_each_row(const Arguments& a, const Task& task, int first_row,
                                             const Write& write) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + 8 * r;
    if (row < task.num_rows) write(r, row_of(a, task, row));
  }
}

__device__ __forceinline__ int column_of(int col) { return col * 8 + threadIdx.x % 4 * 2; }

// The state of a segment of a split row tile, for combine: of the rows that see some of it, whatever their weights
// come to, as 0 * v may be a NaN.
template <class C>
__device__ __forceinline__ void write_partial(const Arguments& a, const Task& task, int segment,
                                              int first_row, const RowState (&rows)[2],
                                              const Outputs<C>& output) {
  const Workspace& w = a.workspace;
  for_each_row(a, task, first_row, [&](int r, TaskRow row) {
    const int64_t state = partial_state(a, task, segment, row);
    if (state < 0) return;
    if (threadIdx.x % 4 == 0) w.partial_states[state] = {rows[r].max, rows[r].sum};
#pragma unroll
    for (int col = 0; col < C::kOutputCols; ++col) {
      if (col * 8 >= a.values.dim) break;
      *reinterpret_cast<float2*>(w.partial_values + state * w.value_stride + column_of(col)) = {
          output[col][2 * r], output[col][2 * r + 1]};
    }
  });
}

// 8 elements of an output row.
template <typename T>
__device__ __forceinline__ void store_chunk(const Rows& output, int64_t at, uint4 chunk) {
  uint32_t pairs[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
  make_nan_one<T>(pairs);
  uint16_t* const out = static_cast<uint16_t*>(output.data) + at;
  if (output.vector_bytes == 16) {
    *reinterpret_cast<uint4*>(out) = {pairs[0], pairs[1], pairs[2], pairs[3]};
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) out[i] = static_cast<uint16_t>(pairs[i / 2] >> i % 2 * 16);
}

// By way of the warp's own totals, which have been used: a lane stores 8 elements, a warp 64 bytes of each of 8 rows.
template <class C>
__device__ __forceinline__ void write_output(const Arguments& a, const Task& task, int first_row,
                                             const Totals<C>& totals, const Outputs<C>& output) {
  using T = typename C::Element;
  const int lane = threadIdx.x % 32;
  const int64_t query_start = task.geometry.query_start;
  Ending ends[2]{};
  for_each_row(a, task, first_row, [&](int r, TaskRow row) {
    ends[r] = end_row(a, totals.rows[r], row.q_head);
    if (lane % 4 == 0) store_lse(a, query_start + row.token, row.q_head, ends[r].lse);
  });
  if constexpr (C::kTotalsAreShared) {
    // Of a column of 8 and a warp, 16 rows of 16 bytes. Lane l has 4 bytes of row l / 4.
    constexpr int kStep = C::kConsumerThreads * 16;
    char* const memory = reinterpret_cast<char*>(totals.memory) - lane * 16;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2 * C::kOutputCols; ++i) {
      const int col = i / 2, r = i % 2;
      *reinterpret_cast<uint32_t*>(memory + col * kStep + r * 128 + lane * 4) = pack<T>(
          end_value(output[col][2 * r], ends[r]), end_value(output[col][2 * r + 1], ends[r]));
    }
    __syncwarp();
    const int first = first_row - lane / 4 + lane % 8;
#pragma unroll 1
    for (int r = 0; r < 2; ++r) {
      if (first + 8 * r >= task.num_rows) break;
      const TaskRow row = row_of(a, task, first + 8 * r);
      const int64_t at = output_offset(a, query_start + row.token, row.q_head);
#pragma unroll 1
      for (int col = lane / 8; col * 8 < a.values.dim; col += 4) {
        store_chunk<T>(
            a.output, at + col * 8,
            *reinterpret_cast<const uint4*>(memory + col * kStep + r * 128 + lane % 8 * 16));
      }
    }
    __syncwarp();
  } else {
    for_each_row(a, task, first_row, [&](int r, TaskRow row) {
      const int64_t at = output_offset(a, query_start + row.token, row.q_head);
#pragma unroll
      for (int col = 0; col < C::kOutputCols; ++col) {
        if (col * 8 >= a.values.dim) break;
        store_pair<T>(a.output, at + column_of(col), end_value(output[col][2 * r], ends[r]),
                      end_value(output[col][2 * r + 1], ends[r]));
      }
    });
  }
}

}  // namespace pagefill::cuda::sm90
