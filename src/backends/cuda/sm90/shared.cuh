// What the warps of a block tell each other: tiles, tasks, and when each is there or free.
#pragma once

#include "backends/cuda/device/task.cuh"
#include "backends/cuda/ptx/barrier.h"
#include "backends/cuda/ptx/copy.h"
#include "backends/cuda/sm90/config.h"

namespace pagefill::cuda::sm90 {

inline constexpr int kProducerWarps = 4;
inline constexpr int kTaskSlots = 3;  // one is fetched while one is loaded and one computed

// Of the keys of one stage: a bit a key whose table entry is no page, a word a quarter of the tile; the upper
// bits of a quarter of 16 keys mean nothing.
struct KeyNotes {
  uint32_t is_bad[4];
};

template <class C>
struct Barriers {
  uint64_t keys_full[C::kStages], keys_free[C::kStages];
  uint64_t values_full[C::kStages], values_free[C::kStages];
  uint64_t queries_full[C::kQueryBuffers], queries_free[C::kQueryBuffers];
  uint64_t task_full[kTaskSlots], task_free[kTaskSlots];
};

// At the beginning of a block's memory, so that addresses are constants; tiles are aligned to 1024 bytes.
template <class C>
struct SharedMemory {
  alignas(1024) char queries[C::kQueryBuffers][C::kQueryBytes];
  char keys[C::kStages][C::kTileBytes];
  char values[C::kStages][C::kTileBytes];
  alignas(16) char totals[C::kTotalsAreShared ? C::kTotalBytes : 16];
  KeyNotes notes[C::kStages];
  Barriers<C> barriers;
  Task tasks[kTaskSlots];  // without a plan: there are no more
  SequencePlan sequence;   // where the block makes its own schedule
};

template <class C>
__device__ __forceinline__ void init_barriers(Barriers<C>& b) {
  constexpr int kConsumerWarps = 4 * C::kConsumers;
  const auto init = [](uint64_t& barrier, int arrivals) {
    ptx::init_barrier(ptx::shared_address(&barrier), arrivals);
  };
  for (int i = 0; i < C::kStages; ++i) {
    init(b.keys_full[i], kProducerWarps);
    init(b.values_full[i], kProducerWarps);
    init(b.keys_free[i], kConsumerWarps);
    init(b.values_free[i], kConsumerWarps);
  }
  for (int i = 0; i < C::kQueryBuffers; ++i) {
    init(b.queries_full[i], kProducerWarps / 2);
    init(b.queries_free[i], kConsumerWarps);
  }
  for (int i = 0; i < kTaskSlots; ++i) {
    init(b.task_full[i], 1);
    init(b.task_free[i], kConsumerWarps + kProducerWarps - 1);  // all but the warp that fills it in
  }
  ptx::fence_barrier_init();
}

// A place in a ring, and how often the ring has been gone round.
template <int kCount>
struct Cursor {
  int at = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++at == kCount) at = 0, parity ^= 1;
  }
};

__device__ __forceinline__ void wait(uint64_t& barrier, uint32_t parity) {
  ptx::wait(ptx::shared_address(&barrier), parity);
}

// Once for the warp, behind all that its lanes have done.
__device__ __forceinline__ void arrive_as_warp(uint32_t barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) ptx::arrive(barrier);
}
__device__ __forceinline__ void arrive_as_warp(uint64_t& barrier) {
  arrive_as_warp(ptx::shared_address(&barrier));
}

// The same in all lanes, and the compiler is to know: products are pipelined only where it sees that no branch
// splits a warp.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(~0u, x, 0); }

// Whether a task's tiles come as boxes: a box may not cross pages, nor a tile's edge.
__device__ __forceinline__ bool comes_as_boxes(int box_rows, const Task& task) {
  return box_rows > 0 && task.kv_start % box_rows == 0;
}

// The KV tiles of a task.
struct Tiles {
  int begin, end;
  __device__ bool contains(int tile) const { return tile >= begin && tile < end; }
};
template <class C>
__device__ __forceinline__ Tiles tiles_of(const Task& task) {
  return {uniform(task.any.begin / C::kTileKv),
          uniform((task.any.end + C::kTileKv - 1) / C::kTileKv)};
}

// Those of which all keys lie in an interval.
template <class C>
__device__ __forceinline__ Tiles tiles_within(KeyInterval keys) {
  return {uniform((keys.begin + C::kTileKv - 1) / C::kTileKv), uniform(keys.end / C::kTileKv)};
}

template <class C>
__device__ __forceinline__ KeyInterval keys_of_tile(int tile) {
  const uint32_t begin = static_cast<uint32_t>(tile) * C::kTileKv;
  return {begin, begin + C::kTileKv};
}

}  // namespace pagefill::cuda::sm90
