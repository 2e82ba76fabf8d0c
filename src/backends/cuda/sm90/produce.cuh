// The producer warpgroup: fetches tasks, and brings their queries, keys and values.
#pragma once

#include "backends/cuda/sm90/load.cuh"

namespace pagefill::cuda::sm90 {

template <class C>
struct Producer {
  const Arguments& a;
  const TensorMaps& maps;
  SharedMemory<C>& shared;
  Cursor<C::kStages> keys, values;
  Cursor<C::kQueryBuffers> queries;

  // Behind what the warp has copied.
  static __device__ __forceinline__ void announce(uint32_t barrier) {
    ptx::arrive_behind_copies(barrier);
    arrive_as_warp(barrier);
  }

  // A tile's keys or values. One code for both: it is long, and the consumers need the instruction cache.
  __device__ __forceinline__ void load_tile(bool is_keys, const Task& task, bool has_boxes,
                                            const Quarter& quarter) {
    const int at = is_keys ? keys.at : values.at;
    Barriers<C>& barriers = shared.barriers;
    wait(is_keys ? barriers.keys_free[at] : barriers.values_free[at],
         (is_keys ? keys.parity : values.parity) ^ 1);
    if (is_keys && threadIdx.x % 32 == 0) {
      shared.notes[at].is_bad[threadIdx.x / 32] = quarter.is_bad;
    }
    __syncwarp();
    char* const tile = is_keys ? shared.keys[at] : shared.values[at];
    const uint32_t full =
        ptx::shared_address(is_keys ? &barriers.keys_full[at] : &barriers.values_full[at]);
    if (has_boxes) {
      copy_quarter<C>(is_keys ? maps.keys : maps.values, maps.box_rows, task.kv_head,
                      ptx::shared_address(tile), full, quarter);
      __syncwarp();
    } else {
      gather_quarter<C>(is_keys ? a.keys : a.values, task.kv_head, tile, quarter);
      announce(full);
    }
    if (is_keys) keys.advance();
    if (!is_keys) values.advance();
  }

  // In the order in which they are used: keys of a tile before the values of the one before it.
  __device__ __forceinline__ void load_task(const Task& task) {
    const Tiles tiles = tiles_of<C>(task);
    if (tiles.begin >= tiles.end) return;
    const bool has_boxes = comes_as_boxes(maps.box_rows, task);
    int tile = tiles.begin;
    int32_t entry = read_entry<C>(a, task, tile);
    wait(shared.barriers.queries_free[queries.at], queries.parity ^ 1);
    copy_queries<C>(a, task, shared.queries[queries.at]);
    announce(ptx::shared_address(&shared.barriers.queries_full[queries.at]));
    queries.advance();
    Quarter quarter{}, before{};
    const int last = 2 * (tiles.end - tiles.begin) - 1;
#pragma unroll 1
    for (int i = 0; i <= last; ++i) {
      const bool is_keys = i == 0 || (i % 2 == 1 && i < last);
      if (is_keys || i == last) before = quarter;
      if (is_keys) {
        quarter = find_quarter<C>(a, task, tile, entry);
        entry = read_entry<C>(a, task, ++tile);
      }
      Quarter of_tile = before;
      if (is_keys) of_tile = quarter;
      load_tile(is_keys, task, has_boxes, of_tile);
    }
  }
};

__device__ __forceinline__ long long take_task(ScheduleHeader& header) {
  long long index = 0;
  if (threadIdx.x % 32 == 0) {
    index = static_cast<long long>(atomicAdd(&header.next_task, 1ull));
  }
  return __shfl_sync(~0u, index, 0);
}

template <class C>
__device__ __forceinline__ void produce(const Arguments& a, const TensorMaps& maps,
                                        SharedMemory<C>& shared) {
  Producer<C> producer{a, maps, shared};
  ScheduleHeader& header = *a.workspace.header;
  Barriers<C>& barriers = shared.barriers;
  const bool fetches = threadIdx.x < 32;
  const long long num_tasks = header.num_tasks;
  long long next = fetches ? take_task(header) : 0;
#pragma unroll 1
  for (Cursor<kTaskSlots> slot;; slot.advance()) {
    Task& task = shared.tasks[slot.at];
    if (fetches) {
      wait(barriers.task_free[slot.at], slot.parity ^ 1);
      const long long index = next;
      Task found{};
      if (index < num_tasks) {
        next = take_task(header);  // asked for early: the answer is there when the task is done
        found = find_task(a, index);
      }
      if (threadIdx.x == 0) task = found;
      arrive_as_warp(barriers.task_full[slot.at]);
    } else {
      wait(barriers.task_full[slot.at], slot.parity);
    }
    if (task.plan == nullptr) return;
    if (!task.plan->is_bad) producer.load_task(task);
    if (!fetches) arrive_as_warp(barriers.task_free[slot.at]);
  }
}

}  // namespace pagefill::cuda::sm90
