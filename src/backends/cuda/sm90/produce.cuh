// The producer warpgroup: fetches tasks, and brings their queries, keys and values.
#pragma once

#include "backends/cuda/sm90/load.cuh"

namespace pagefill::cuda::sm90 {

// cp.async tells no barrier that its bytes may be read by wgmma: its thread waits for them, fences and
// arrives. That is put off until kMost later items have been asked for, or the warp has to wait anyway.
template <int kMost>
struct Announcements {
  uint32_t barriers[kMost];
  int count = 0;

  __device__ __forceinline__ void add(uint32_t barrier) {
    ptx::commit_copies();
    if (count == kMost) {
      ptx::wait_for_copies<kMost>();
      announce_first();
    }
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (i == count) barriers[i] = barrier;
    }
    ++count;
  }
  __device__ __forceinline__ void flush() {
    if (count == 0) return;
    ptx::wait_for_copies<0>();
    while (count > 0) announce_first();
  }

 private:
  __device__ __forceinline__ void announce_first() {
    ptx::fence_proxy();
    arrive_as_warp(barriers[0]);
#pragma unroll
    for (int i = 0; i + 1 < kMost; ++i) barriers[i] = barriers[i + 1];
    --count;
  }
};

template <class C>
struct Producer {
  const Arguments& a;
  const TensorMaps& maps;
  SharedMemory<C>& shared;
  Cursor<C::kStages> keys, values;
  uint32_t queries_parity = 0;
  Announcements<C::kStages - 1> announcements;

  __device__ __forceinline__ void wait_until_free(uint64_t& barrier, uint32_t parity) {
    const uint32_t address = ptx::shared_address(&barrier);
    if (__all_sync(~0u, ptx::has_completed(address, parity ^ 1))) return;
    announcements.flush();
    ptx::wait(address, parity ^ 1);
  }

  __device__ __forceinline__ void load_tile(const CacheView& cache, const CUtensorMap& map,
                                            bool has_boxes, int kv_head, char* tile,
                                            uint64_t& full, const Quarter& quarter) {
    const uint32_t barrier = ptx::shared_address(&full);
    if (has_boxes) {
      copy_quarter<C>(map, maps.box_rows, kv_head, ptx::shared_address(tile), barrier, quarter);
      __syncwarp();
    } else {
      gather_quarter<C>(cache, kv_head, tile, quarter);
      announcements.add(barrier);
    }
  }

  __device__ __forceinline__ void load_keys(const Task& task, bool has_boxes,
                                            const Quarter& quarter) {
    wait_until_free(shared.barriers.keys_free[keys.at], keys.parity);
    if (threadIdx.x % 32 == 0) shared.notes[keys.at].is_bad[threadIdx.x / 32] = quarter.is_bad;
    __syncwarp();
    load_tile(a.keys, maps.keys, has_boxes, task.kv_head, shared.keys[keys.at],
              shared.barriers.keys_full[keys.at], quarter);
    keys.advance();
  }

  __device__ __forceinline__ void load_values(const Task& task, bool has_boxes,
                                              const Quarter& quarter) {
    wait_until_free(shared.barriers.values_free[values.at], values.parity);
    load_tile(a.values, maps.values, has_boxes, task.kv_head, shared.values[values.at],
              shared.barriers.values_full[values.at], quarter);
    values.advance();
  }

  // Keys of a tile before the values of the one before it: in this order they are used.
  __device__ __forceinline__ void load_task(const Task& task) {
    const Tiles tiles = tiles_of<C>(task);
    if (tiles.begin >= tiles.end) return;
    // A box may not cross pages, nor a tile's edge.
    const bool has_boxes = maps.box_rows > 0 && task.kv_start % maps.box_rows == 0;
    int32_t entry = read_entry<C>(a, task, tiles.begin);
    int32_t entry_ahead = read_entry<C>(a, task, tiles.begin + 1);
    wait_until_free(shared.barriers.queries_free, queries_parity);
    queries_parity ^= 1;
    copy_queries<C>(a, task, shared.queries);
    announcements.add(ptx::shared_address(&shared.barriers.queries_full));
    Quarter quarter = find_quarter<C>(a, task, tiles.begin, entry);
    load_keys(task, has_boxes, quarter);
    if (has_boxes) announcements.flush();
#pragma unroll 1
    for (int tile = tiles.begin; tile < tiles.end; ++tile) {
      const Quarter values_quarter = quarter;
      if (tile + 1 < tiles.end) {
        entry = entry_ahead;
        entry_ahead = read_entry<C>(a, task, tile + 2);
        quarter = find_quarter<C>(a, task, tile + 1, entry);
        load_keys(task, has_boxes, quarter);
      }
      load_values(task, has_boxes, values_quarter);
    }
    announcements.flush();
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
  Barriers<C::kStages>& barriers = shared.barriers;
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
