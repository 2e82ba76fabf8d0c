// The end of a segment and of a task: merging, partial states, output.
#pragma once

#include "backends/cuda/portable/forward.cuh"

namespace pagefill::cuda {

template <class C>
__device__ __forceinline__ int value_column(const Arguments& a, const Task& task,
                                            const Place<C>& place, int output_col) {
  return task.value_part * C::kValueCols + place.column(output_col);
}

// The accumulators of the segments so far, of one thread; between segments they lie in the workspace, which
// the L2 holds.
template <class C>
__device__ __forceinline__ float4* totals_of(const Arguments& a) {
  return reinterpret_cast<float4*>(a.workspace.totals) +
         int64_t{blockIdx.x} * (C::kOutputCols * kThreads) + threadIdx.x;
}

// Takes a finished segment into the totals; what is accumulated then lies in block.output.
template <class C>
__device__ __forceinline__ void end_segment(const Arguments& a, float* exchange, Block<C>& block,
                                            bool is_first, bool is_last) {
  float sum[2];
  sum_of_row<C>(block.sums, exchange, sum);
  float4* const totals = totals_of<C>(a);
  float total_factor[2], part_factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (is_first) {
      block.totals[r] = {block.max[r], sum[r]};
    } else {
      merge(block.totals[r], {block.max[r], sum[r]}, total_factor[r], part_factor[r]);
    }
    block.max[r] = -kInfinity;
  }
  block.sums = {};
#pragma unroll
  for (int col = 0; col < C::kOutputCols; ++col) {
    float(&part)[4] = block.output[col];
    if (!is_first) {
      const float4 total = totals[col * kThreads];
      const float before[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        part[e] = merge_value(before[e], part[e], total_factor[e / 2], part_factor[e / 2]);
      }
    }
    if (!is_last) totals[col * kThreads] = {part[0], part[1], part[2], part[3]};
  }
  if (!is_last) clear<C>(block.output);
}

// The state of one segment of a split sequence, for combine.
template <class C>
__device__ __forceinline__ void write_partial(const Arguments& a, const Task& task,
                                              const Place<C>& place, const Block<C>& block) {
  const Workspace& w = a.workspace;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (place.row(r) >= task.num_rows) continue;
    const int64_t packed = task.first_row + place.row(r);
    const int64_t row =
        packed / a.group * a.num_q_heads + task.kv_head * a.group + packed % a.group;
    const int64_t state = task.plan->first_state + row * task.plan->num_segments + task.segment -
                          task.plan->first_segment;
    if (task.value_part == 0 && place.key_warp == 0 && place.lane % 4 == 0) {
      w.partial_states[state] = {block.totals[r].max, block.totals[r].sum};
    }
    if (block.totals[r].sum == 0) continue;
#pragma unroll
    for (int col = 0; col < C::kOutputCols; ++col) {
      const int column = value_column(a, task, place, col);
      if (column >= a.values.dim) continue;
      *reinterpret_cast<float2*>(w.partial_values + state * w.value_stride + column) = {
          block.output[col][2 * r], block.output[col][2 * r + 1]};
    }
  }
}

template <class C>
__device__ __forceinline__ void write_output(const Arguments& a, const Task& task,
                                             const Place<C>& place, const Block<C>& block) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (place.row(r) >= task.num_rows) continue;
    const int64_t packed = task.first_row + place.row(r);
    const int64_t token = task.plan->query_start + packed / a.group;
    const int q_head = static_cast<int>(task.kv_head * a.group + packed % a.group);
    const Ending end = end_row(a, block.totals[r], q_head);
    if (task.value_part == 0 && place.key_warp == 0 && place.lane % 4 == 0) {
      store_lse(a, token, q_head, end.lse);
    }
    with_output_type<typename C::Element>(a.query_dtype, [&](auto type) {
      const int64_t row = output_offset(a, token, q_head);
#pragma unroll
      for (int col = 0; col < C::kOutputCols; ++col) {
        const int column = value_column(a, task, place, col);
        if (column >= a.values.dim) continue;
        store_pair<decltype(type)>(a.output, row + column, end_value(block.output[col][2 * r], end),
                                   end_value(block.output[col][2 * r + 1], end));
      }
    });
  }
}

}  // namespace pagefill::cuda
