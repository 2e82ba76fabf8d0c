// The producer warpgroup: fetches tasks, and brings their queries, keys and values.
#pragma once

#include "backends/cuda/device/schedule.cuh"
#include "backends/cuda/sm90/load_boxes.cuh"
#include "backends/cuda/sm90/load_queries.cuh"
#include "backends/cuda/sm90/load_rows.cuh"

namespace pagefill::cuda::sm90 {

// What the last producer warp does besides: a task ahead of what is loaded, so that nobody waits for it.
template <class C>
struct Fetcher {
  const Arguments& a;
  SharedMemory<C>& shared;
  const SequencePlan* sequences = nullptr;
  bool all_are_bad = false;
  long long num_tasks = 0;
  // Of the first lane; schedule has counted each block's first one as taken.
  long long next = blockIdx.x;
  bool has_ended = false;
  Cursor<kTaskSlots> slot{};

  // What there is to do: as the kernel before this one has found, or found here. combine reads it from the workspace.
  __device__ __forceinline__ void begin() {
    ScheduleHeader header;
    if (a.schedules_itself) {
      SequencePlan p{};
      header = schedule_one_sequence(a, p);
      if (threadIdx.x % 32 == 0) {
        shared.sequence = p;
        if (blockIdx.x == 0) *a.workspace.header = header, *a.workspace.sequences = p;
      }
      __syncwarp();
      sequences = &shared.sequence;
    } else {
      header = *a.workspace.header;
      sequences = a.workspace.sequences;
    }
    all_are_bad = header.is_bad != 0;
    num_tasks = header.num_tasks;
  }

  // Asked for early: the answer is there at the next call.
  __device__ __forceinline__ void ask_for_next() {
    if (a.schedules_itself) {
      next += gridDim.x;
    } else if (threadIdx.x % 32 == 0) {
      next = static_cast<long long>(atomicAdd(&a.workspace.header->next_task, 1ull));
    }
  }

  __device__ __forceinline__ void fetch() {
    if (has_ended) return;
    wait(shared.barriers.task_free[slot.at], slot.parity ^ 1);
    const long long index = __shfl_sync(~0u, next, 0);
    has_ended = index >= num_tasks;
    Task found{};  // without a plan: the end
    if (has_ended) {
      found.all_are_bad = all_are_bad;
    } else {
      ask_for_next();
      found = find_task(a, sequences, index);
    }
    if (threadIdx.x % 32 == 0) shared.tasks[slot.at] = found;
    arrive_as_warp(shared.barriers.task_full[slot.at]);
    slot.advance();
  }
};

// All producer warps call it; keys and values have the same stage before and behind it.
template <class C>
__device__ __forceinline__ void load_tiles(const Arguments& a, const TensorMaps& maps,
                                           SharedMemory<C>& shared, const Task& task, Tiles tiles,
                                           Cursor<C::kStages>& stage) {
  const int box_rows = comes_as_boxes(maps.box_rows, task) ? maps.box_rows : 0;
  if (C::kMostBoxRows == 0 || box_rows == 0) {
    load_rows<C>(a, shared, task, tiles, stage);
  } else if constexpr (C::kMostBoxRows > 0) {
    switch (box_rows) {
      case 4:
        return load_boxes<C, 4>(a, maps, shared, task, tiles, stage);
      case 8:
        return load_boxes<C, 8>(a, maps, shared, task, tiles, stage);
      case 16:
        return load_boxes<C, 16>(a, maps, shared, task, tiles, stage);
      case 32:
        return load_boxes<C, 32>(a, maps, shared, task, tiles, stage);
      default:
        if constexpr (C::kMostBoxRows == 64) load_boxes<C, 64>(a, maps, shared, task, tiles, stage);
    }
  }
}

template <class C>
__device__ __forceinline__ void produce(const Arguments& a, const TensorMaps& maps,
                                        SharedMemory<C>& shared) {
  Barriers<C>& barriers = shared.barriers;
  const int warp = uniform(threadIdx.x / 32);
  // Keys and queries are needed first: what else there is to do is left to the last warp.
  const bool brings_queries = warp >= kProducerWarps / 2, fetches = warp == kProducerWarps - 1;
  Fetcher<C> fetcher{a, shared};
  Cursor<C::kQueryBuffers> queries;
  Cursor<C::kStages> stage;
  if (fetches) fetcher.begin(), fetcher.fetch();
#pragma unroll 1
  for (Cursor<kTaskSlots> slot;; slot.advance()) {
    wait(barriers.task_full[slot.at], slot.parity);
    const Task& task = shared.tasks[slot.at];
    if (task.plan == nullptr) return;
    const Tiles tiles = task.plan->is_bad ? Tiles{} : tiles_of<C>(task);
    const bool has_tiles = tiles.begin < tiles.end;
    if (has_tiles && brings_queries) {
      wait(barriers.queries_free[queries.at], queries.parity ^ 1);
      copy_queries<C>(a, task, shared.queries[queries.at]);
      announce(ptx::shared_address(&barriers.queries_full[queries.at]));
      queries.advance();
    }
    if (fetches) fetcher.fetch();
    if (has_tiles) load_tiles<C>(a, maps, shared, task, tiles, stage);
    if (!fetches) arrive_as_warp(barriers.task_free[slot.at]);
  }
}

}  // namespace pagefill::cuda::sm90
