// The forward kernel from top to bottom; its parts are in the files beside it.
#pragma once

#include <limits>

#include "backends/cuda/kernels.h"
#include "backends/cuda/portable/finish.cuh"
#include "backends/cuda/ptx/grid.h"
#include "problem.h"

namespace pagefill::cuda {

// A thread a row.
template <class C>
__device__ __forceinline__ void find_rows(const Arguments& a, const Task& task, RowKeys* rows) {
  static_assert(sizeof(RowKeys) == kRowKeysBytes && sizeof(Task) <= kTaskBytes);
  const int row = threadIdx.x;
  if (row >= a.tile_rows) return;
  rows[row] = keys_of_row(a, task, row);
}

// The scores of one KV tile.
template <class C, int kBlocks>
__device__ __forceinline__ void compute_scores(const Arguments& a, const Shared<C>& shared,
                                               const Place<C>& place, bool has_rows, int tile,
                                               int32_t& entry_ahead, Pipeline<C>& pipeline,
                                               Scores<C>& scores) {
  const auto add_piece = [&](int i, auto is_first) {
    const char* const piece = pipeline.next(tile, i);
    if (is_first && tile % 2 == 0) {
      fill_tables<C>(a, *shared.task, tile + 2, entry_ahead, shared.tables);
      entry_ahead = read_entry(a, *shared.task, tile + 4);
    }
    const int num_dims = a.keys.dim - i * C::kPiece;
    const auto* const piece_queries = shared.queries + i * a.tile_rows * C::kPieceRow;
    if constexpr (C::kIsFloat) {
      if (!has_rows) return;
      add_scores_float<C>(scores[0], piece_queries + place.warp_row * C::kPieceRow,
                          min(C::kPiece, num_dims), reinterpret_cast<const float*>(piece),
                          place.first_score_col());
    } else {
      // A warp without rows computes what nobody reads, from queries that are there.
      const int row = min(place.warp_row, a.tile_rows - kWarpRows);
      const uint32_t queries = ptx::shared_address(piece_queries + row * C::kPieceRow);
      const uint32_t keys = ptx::shared_address(piece);
      if (C::kPiece == 64 || num_dims > 64) {  // zeros behind the last
        add_scores_mma<C, kBlocks, C::kPiece / 64, is_first>(scores, queries, keys,
                                                             place.first_score_col());
      } else {
        add_scores_mma<C, kBlocks, 1, is_first>(scores, queries, keys, place.first_score_col());
      }
    }
  };
  if constexpr (C::kIsFloat) clear(scores);
  add_piece(0, std::true_type());
#pragma unroll 1
  for (int i = 1; i < pipeline.key_pieces; ++i) add_piece(i, std::false_type());
}

// One KV tile: scores, weights, values. `has_rows`: this warp has some of the task's.
template <class C, int kBlocks>
__device__ __forceinline__ void add_tile(const Arguments& a, const Shared<C>& shared,
                                         const Place<C>& place, bool has_rows, int tile,
                                         int32_t& entry_ahead, Pipeline<C>& pipeline,
                                         Block<C>& block) {
  Scores<C> scores;
  PackedWeights<C> packed;
  compute_scores<C, kBlocks>(a, shared, place, has_rows, tile, entry_ahead, pipeline, scores);
  if (!C::kIsFloat || has_rows) {
    const TileTable& table = shared.tables[tile % kTables];
    const int first_key = place.first_score_col() * 8;
    const uint32_t tile_begin = first_key_of(tile);
    const bool must_mask = (table.must_mask[0] | table.must_mask[1]) != 0;
    const auto rows_of = [&](int m, int r) { return shared.rows[place.row(m, r)]; };
    if (a.weight_factor == 1) {
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) scale_scores<C>(a, table, first_key, scores[m]);
    }
    if (must_mask) {
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        const RowKeys rows[2] = {rows_of(m, 0), rows_of(m, 1)};
        mask_scores<C>(a, table, tile_begin, first_key, rows, scores[m]);
      }
    }
    softmax<C, kBlocks>(a, shared.exchange, shared.quarters, block.max, block.sums, block.output,
                        scores);
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      if constexpr (C::kIsStaged) {
        if (a.values.scale != nullptr) scale_weights<C>(table, first_key, scores[m]);
        if (must_mask) {
          const RowKeys rows[2] = {rows_of(m, 0), rows_of(m, 1)};
          remove_unseen<C>(tile_begin, first_key, rows, scores[m]);
        }
      }
      place_weights<C>(place, shared, scores[m], packed[m]);
    }
  }
  add_values<C, kBlocks, 0>(a, shared, place, has_rows, pipeline, block, packed, tile);
}

// All KV tiles of a task whose rows lie in the first kBlocks row blocks of the warps.
template <class C, int kBlocks>
__device__ __forceinline__ void run_tiles(const Arguments& a, const Shared<C>& shared,
                                          const Place<C>& place, int first_tile, int end_tile,
                                          int32_t entry_ahead) {
  const Task& task = *shared.task;
  const int first_col = task.value_part * C::kValueCols;
  const int key_pieces = num_pieces<C>(a.keys.dim);
  const int value_pieces = num_pieces<C>(min(C::kValueCols, a.values.dim - first_col));
  Pipeline<C> pipeline{a, shared, key_pieces, key_pieces + value_pieces, first_col};
  pipeline.begin(first_tile);

  Block<C> block;
#pragma unroll
  for (int m = 0; m < C::kRowBlocks; ++m) block.max[m][0] = block.max[m][1] = -kInfinity;
  clear(block.output);
  const bool has_rows = place.warp_row < task.num_rows;
  constexpr int kSegmentTiles = kSegmentKv / kTileKv;
#pragma unroll 1
  for (int tile = first_tile; tile < end_tile; ++tile) {
    if (tile % kSegmentTiles == 0 && tile > first_tile) {
      keep_segment<C, kBlocks>(a, block, tile - kSegmentTiles <= first_tile);
    }
    add_tile<C, kBlocks>(a, shared, place, has_rows, tile, entry_ahead, pipeline, block);
  }
  RowState totals[C::kRowBlocks][2];
  const bool is_only = first_tile / kSegmentTiles == (end_tile - 1) / kSegmentTiles;
  end_segments<C, kBlocks>(a, block, is_only || end_tile <= first_tile, totals);
  ptx::wait_for_copies<0>();
  if (task.segment >= 0) {
    write_partial<C, kBlocks>(a, task, place, block, totals);
  } else {
    write_output<C, kBlocks>(a, task, place, block, totals);
  }
}

template <class C>
__device__ __forceinline__ void run_task(const Arguments& a, const Shared<C>& shared) {
  const Place<C> place;
  const Task& task = *shared.task;
  const int first_tile = static_cast<int>(task.any.begin / kTileKv);
  const int end_tile = static_cast<int>((task.any.end + kTileKv - 1) / kTileKv);
  find_rows<C>(a, task, shared.rows);
  int even_tile = first_tile & ~1;
  fill_tables<C>(a, task, even_tile, read_entry(a, task, even_tile), shared.tables);
  even_tile += 2;
  int32_t entry_ahead = read_entry(a, task, even_tile);
  if (first_tile % 2 != 0) {  // else the first tile fills them in
    fill_tables<C>(a, task, even_tile, entry_ahead, shared.tables);
    entry_ahead = read_entry(a, task, even_tile + 2);
  }
  load_queries<C>(a, task.plan->query_start, task.kv_head, task.first_row, task.num_rows,
                  shared.queries);
  __syncthreads();
  if constexpr (C::kRowBlocks == 2) {
    if (task.num_rows <= C::kBlockStep) {
      return run_tiles<C, 1>(a, shared, place, first_tile, end_tile, entry_ahead);
    }
  }
  run_tiles<C, C::kRowBlocks>(a, shared, place, first_tile, end_tile, entry_ahead);
}

template <class C>
__global__ void __launch_bounds__(kThreads, C::kMinBlocks)
    forward(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(128) char memory[];
  __shared__ long long shared_task;
  ptx::begin_kernel_behind();
  ptx::wait_for_kernel_before();
  ScheduleHeader& header = *a.workspace.header;
  if (header.is_bad) {
    write_nan(a, 0, a.total_tokens, 0, a.num_q_heads, int64_t{blockIdx.x} * kThreads + threadIdx.x,
              int64_t{gridDim.x} * kThreads);
    return;
  }
  const Shared<C> shared(memory, a);
  const long long num_tasks = header.num_tasks;
  long long next = 0;
  // The first task is the block's number; schedule has counted it as taken.
  for (long long index = blockIdx.x; index < num_tasks; index = shared_task) {
    // Asked for early: the answer is there when the task is done.
    if (threadIdx.x == 0) next = static_cast<long long>(atomicAdd(&header.next_task, 1ull));
    if (threadIdx.x < 32) {
      const Task found = find_task(a, a.workspace.sequences, index);
      if (threadIdx.x == 0) *shared.task = found;
    }
    __syncthreads();
    const Task& task = *shared.task;
    if (!task.plan->is_bad) {
      run_task<C>(a, shared);
    } else if (task.value_part == 0) {
      write_nan(a, task, threadIdx.x, kThreads);
    }
    __syncthreads();
    if (threadIdx.x == 0) shared_task = next;
    __syncthreads();
  }
}

// A row of the table of kernels.
template <class C>
ForwardKernel forward_kernel(DType query_dtype, Cache cache) {
  return {
      "portable",
      0,
      query_dtype,
      cache,
      static_cast<int>(kMaxHeadDim),
      C::kValueCols,
      C::kKeyWarps == 1 ? Tile::kManyRows : Tile::kFewRows,
      C::kTileRows,
      kThreads,
      C::kRowBlocks * (C::kOutputCols + 1) * 4 * kThreads,
      1,
      0,
      false,
      reinterpret_cast<const void*>(&forward<C>),
      [](int tile_rows, int head_dim, int cache_element_size) {
        return static_cast<size_t>(shared_layout<C>(tile_rows, head_dim, cache_element_size).size);
      }};
}

}  // namespace pagefill::cuda
