// Merges the states of split rows' segments, in ascending order: a warp a row.
#include "backends/cuda/config.h"
#include "backends/cuda/device/find.cuh"
#include "backends/cuda/device/state.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/ptx/grid.h"

namespace pagefill::cuda {
namespace {

constexpr int kCombineThreads = 256;
constexpr int kLaneCols = 4;  // of a float4
constexpr int kAhead = 12;    // states are read before the first is merged: a read is waited for

// The columns of one lane, from states [first, end) of the workspace.
__device__ RowState merge_columns(const Arguments& a, int64_t first, int64_t end, int column,
                                  bool has_column, float (&values)[kLaneCols]) {
  const Workspace& w = a.workspace;
  RowState total;
  for (; first < end; first += kAhead) {
    float2 states[kAhead];
    float4 parts[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= end) break;
      states[i] = w.partial_states[first + i];
      parts[i] = has_column ? *reinterpret_cast<const float4*>(
                                  w.partial_values + (first + i) * w.value_stride + column)
                            : float4{};
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= end) break;
      const float part[kLaneCols] = {parts[i].x, parts[i].y, parts[i].z, parts[i].w};
      float total_factor, part_factor;
      merge(total, {states[i].x, states[i].y}, total_factor, part_factor);
#pragma unroll
      for (int d = 0; d < kLaneCols; ++d) {
        values[d] = merge_value(values[d], part[d], total_factor, part_factor);
      }
    }
  }
  return total;
}

__global__ void __launch_bounds__(kCombineThreads) combine(const __grid_constant__ Arguments a) {
  ptx::begin_kernel_behind();
  ptx::wait_for_kernel_before();
  const int64_t num_rows = a.workspace.header->num_split_rows;
  const int lane = threadIdx.x % 32;
  const int64_t step = int64_t{gridDim.x} * (kCombineThreads / 32);
  for (int64_t row = (int64_t{blockIdx.x} * kCombineThreads + threadIdx.x) / 32; row < num_rows;
       row += step) {
    const int64_t s =
        find_sequence(a.workspace.sequences, a.num_seqs, &SequencePlan::first_row, row);
    const SequencePlan& p = a.workspace.sequences[s];
    const int64_t row_of_sequence = row - p.first_row;
    const int64_t token_of_sequence = row_of_sequence / a.num_q_heads;
    const int64_t token = p.query_start + token_of_sequence;
    const int q_head = static_cast<int>(row_of_sequence % a.num_q_heads);
    // The last token may be split in part.
    if (token_of_sequence * a.group + q_head % a.group >= int64_t{p.num_split} * a.tile_rows)
      continue;
    // Segments that the row does not see were not written.
    const SequenceGeometry seq = p.geometry();
    const KeyRange keys = a.mask.attended(seq, seq.position(token_of_sequence));
    const int64_t first_segment = keys.begin / kSegmentKv;
    const int64_t end_segment = keys.empty() ? first_segment : ceil_div(keys.end, kSegmentKv);
    const int64_t state_of_0 = p.first_state + row_of_sequence * p.num_segments - p.first_segment;
    for (int first = 0; first < a.values.dim; first += 32 * kLaneCols) {
      const int column = first + lane * kLaneCols;
      const bool has_column = column < a.values.dim;
      float values[kLaneCols] = {};
      const RowState total = merge_columns(a, state_of_0 + first_segment, state_of_0 + end_segment,
                                           column, has_column, values);
      const Ending end = end_row(a, total, q_head);
      if (first == 0 && lane == 0) store_lse(a, token, q_head, end.lse);
      if (!has_column) continue;
      const int64_t at = output_offset(a, token, q_head) + column;
      with_output_type<float>(a.query_dtype, [&](auto type) {
        for (int d = 0; d < kLaneCols; d += 2) {
          store_pair<decltype(type)>(a.output, at + d, end_value(values[d], end),
                                     end_value(values[d + 1], end));
        }
      });
    }
  }
}

}  // namespace

cudaError_t launch_combine(const Arguments& a, const Stream& stream) {
  void* arguments[] = {const_cast<Arguments*>(&a)};
  // Two of them fit a multiprocessor, and each warp waits for memory.
  return launch(reinterpret_cast<const void*>(&combine), 2 * a.num_blocks, kCombineThreads, 0,
                arguments, stream);
}

}  // namespace pagefill::cuda
