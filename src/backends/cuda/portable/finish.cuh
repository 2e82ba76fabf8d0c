// The end of a segment and of a task: merging, partial states, output.
#pragma once

#include "backends/cuda/portable/forward.cuh"

namespace pagefill::cuda {

template <class C>
__device__ __forceinline__ int value_column(const Task& task, const Place<C>& place,
                                            int output_col) {
  return task.value_part * C::kValueCols + place.column(output_col);
}

// What the segments so far have come to, of one row block of one thread: accumulators, and behind them the
// states of its two rows. Between segments it lies in the workspace, which the L2 holds; registers have no
// room for it.
template <class C>
__device__ __forceinline__ float4* totals_of(const Arguments& a, int m) {
  constexpr int kVectors = C::kOutputCols + 1;
  return reinterpret_cast<float4*>(a.workspace.totals) +
         (int64_t{blockIdx.x} * C::kRowBlocks + m) * (kVectors * kThreads) + threadIdx.x;
}

// Takes a finished segment of one row block together with what `totals` holds of those before it. The
// result's accumulators lie in `output`.
template <class C>
__device__ __forceinline__ void merge_segment(const float4* totals, Block<C>& block, int m,
                                              RowState (&total)[2]) {
  const float4 before = totals[C::kOutputCols * kThreads];
  total[0] = {before.x, before.y}, total[1] = {before.z, before.w};
  float total_factor[2], part_factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    merge(total[r], {block.max[m][r], sum_of_row(block.sums[m].of[r])}, total_factor[r],
          part_factor[r]);
  }
#pragma unroll
  for (int col = 0; col < C::kOutputCols; ++col) {
    float(&part)[4] = block.output[m][col];
    const float4 of_col = totals[col * kThreads];
    const float so_far[4] = {of_col.x, of_col.y, of_col.z, of_col.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      part[e] = merge_value(so_far[e], part[e], total_factor[e / 2], part_factor[e / 2]);
    }
  }
}

template <class C>
__device__ __forceinline__ void state_of_first(const Block<C>& block, int m, RowState (&total)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] = {block.max[m][r], sum_of_row(block.sums[m].of[r])};
  }
}

// A segment has ended and others follow: its part goes to the totals, and the block begins anew.
template <class C, int kBlocks>
__device__ __forceinline__ void keep_segment(const Arguments& a, Block<C>& block, bool is_first) {
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
    float4* const totals = totals_of<C>(a, m);
    RowState total[2];
    if (is_first) {
      state_of_first(block, m, total);
    } else {
      merge_segment(totals, block, m, total);
    }
    totals[C::kOutputCols * kThreads] = {total[0].max, total[0].sum, total[1].max, total[1].sum};
#pragma unroll
    for (int col = 0; col < C::kOutputCols; ++col) {
      const float(&x)[4] = block.output[m][col];
      totals[col * kThreads] = {x[0], x[1], x[2], x[3]};
    }
    block.max[m][0] = block.max[m][1] = -kInfinity;
    block.sums[m] = {};
  }
  clear(block.output);
}

// The last segment has ended.
template <class C, int kBlocks>
__device__ __forceinline__ void end_segments(const Arguments& a, Block<C>& block, bool is_only,
                                             RowState (&totals)[C::kRowBlocks][2]) {
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
    if (is_only) {
      state_of_first(block, m, totals[m]);
    } else {
      merge_segment(totals_of<C>(a, m), block, m, totals[m]);
    }
  }
}

// Calls write(m, r, row, state) for each row of the task that the thread holds a part of.
template <class C, int kBlocks, typename Write>
__device__ __forceinline__ void for_each_row(const Arguments& a, const Task& task,
                                             const Place<C>& place,
                                             const RowState (&totals)[C::kRowBlocks][2],
                                             const Write& write) {
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = place.row(m, r);
      if (row < task.num_rows) write(m, r, row_of(a, task, row), totals[m][r]);
    }
  }
}

// The state of one segment of a split sequence, for combine: of the rows that see some of it, whatever their weights
// come to, as 0 * v may be a NaN.
template <class C, int kBlocks>
__device__ __forceinline__ void write_partial(const Arguments& a, const Task& task,
                                              const Place<C>& place, const Block<C>& block,
                                              const RowState (&totals)[C::kRowBlocks][2]) {
  const Workspace& w = a.workspace;
  for_each_row<C, kBlocks>(a, task, place, totals, [&](int m, int r, TaskRow row, RowState total) {
    const int64_t state = partial_state(a, task, task.segment, row);
    if (state < 0) return;
    if (task.value_part == 0 && place.key_warp == 0 && place.lane % 4 == 0) {
      w.partial_states[state] = {total.max, total.sum};
    }
#pragma unroll
    for (int col = 0; col < C::kOutputCols; ++col) {
      const int column = value_column(task, place, col);
      if (column >= a.values.dim) continue;
      *reinterpret_cast<float2*>(w.partial_values + state * w.value_stride + column) = {
          block.output[m][col][2 * r], block.output[m][col][2 * r + 1]};
    }
  });
}

template <class C, int kBlocks>
__device__ __forceinline__ void write_output(const Arguments& a, const Task& task,
                                             const Place<C>& place, const Block<C>& block,
                                             const RowState (&totals)[C::kRowBlocks][2]) {
  for_each_row<C, kBlocks>(a, task, place, totals, [&](int m, int r, TaskRow row, RowState total) {
    const int64_t token = int64_t{task.geometry.query_start} + row.token;
    const Ending end = end_row(a, total, row.q_head);
    if (task.value_part == 0 && place.key_warp == 0 && place.lane % 4 == 0) {
      store_lse(a, token, row.q_head, end.lse);
    }
    with_output_type<typename C::Element>(a.query_dtype, [&](auto type) {
      const int64_t at = output_offset(a, token, row.q_head);
#pragma unroll
      for (int col = 0; col < C::kOutputCols; ++col) {
        const int column = value_column(task, place, col);
        if (column >= a.values.dim) continue;
        store_pair<decltype(type)>(a.output, at + column,
                                   end_value(block.output[m][col][2 * r], end),
                                   end_value(block.output[m][col][2 * r + 1], end));
      }
    });
  });
}

}  // namespace pagefill::cuda
