// From pages to shared memory: boxes by the copy engine, or rows by cp.async; and the queries.
#pragma once

#include "backends/cuda/device/chunks.cuh"
#include "backends/cuda/ptx/tensor_copy.h"
#include "backends/cuda/sm90/shared.cuh"
#include "backends/cuda/sm90/tensor_maps.h"

namespace pagefill::cuda::sm90 {

// The stages of keys or of values, as a producer warp sees them.
template <class C>
struct Ring {
  char* tiles;  // of the first stage, as the barriers; the others follow
  uint32_t full, free;

  __device__ Ring(SharedMemory<C>& shared, bool is_keys)
      : tiles(is_keys ? shared.keys[0] : shared.values[0]),
        full(
            ptx::shared_address(is_keys ? shared.barriers.keys_full : shared.barriers.values_full)),
        free(ptx::shared_address(is_keys ? shared.barriers.keys_free
                                         : shared.barriers.values_free)) {}

  __device__ __forceinline__ char* tile(const Cursor<C::kStages>& stage) const {
    return tiles + stage.at * C::kTileBytes;
  }
  __device__ __forceinline__ uint32_t full_barrier(const Cursor<C::kStages>& stage) const {
    return full + stage.at * 8;
  }
  __device__ __forceinline__ void wait_until_free(const Cursor<C::kStages>& stage) const {
    ptx::wait(free + stage.at * 8, stage.parity ^ 1);
  }
};

// `kCount` keys from a lane's `key` on, which lie in one page, if they lie in any: where, and whether the task
// needs some of them.
template <int kCount>
__device__ __forceinline__ bool is_needed(const Task& task, uint32_t key) {
  return key < task.any.end && key + kCount > task.any.begin;
}

// Their table entry, read long before it is used.
template <int kCount>
__device__ __forceinline__ int32_t read_entry(const Arguments& a, const Task& task, uint32_t key) {
  if (!is_needed<kCount>(task, key)) return -1;
  const int32_t page = a.page_size_divisor.quotient(static_cast<int32_t>(key) - task.kv_start);
  return __ldg(a.page_table + task.sequence * a.table_seq_stride + page * a.table_entry_stride);
}

struct Place {
  int32_t page, slot;  // of the lane's first key
  uint32_t is_there;   // a bit a lane
  uint32_t is_bad;     // needed, but the table entry is no page
};

// An entry that is no page of the cache is reported, and never becomes an address.
template <int kCount>
__device__ __forceinline__ Place find_place(const Arguments& a, const Task& task, uint32_t key,
                                            int32_t entry) {
  // Before the table's first slot, and behind the largest position, there are none.
  const int32_t token = max(static_cast<int32_t>(key) - task.kv_start, 0);
  const int32_t page = a.page_size_divisor.quotient(token);
  const bool needed = is_needed<kCount>(task, key);
  const bool is_there = needed && entry >= 0 && entry < a.total_num_pages;
  if (needed && !is_there) {
    report(a.status, CudaStatusCode::kPageTable, task.sequence, page, entry);
  }
  return {is_there ? entry : 0, token - page * a.page_size, __ballot_sync(~0u, is_there),
          __ballot_sync(~0u, needed && !is_there)};
}

// Where 8 elements of a row lie in parts of 64 elements, `part_bytes` apart, swizzled as wgmma reads them.
__device__ __forceinline__ int place_of(int row, int chunk, int part_bytes) {
  return chunk / 8 * part_bytes + row * 128 + swizzled(chunk % 8, row) * 16;
}

// 8 elements, or zeros.
__device__ __forceinline__ void copy_chunk(char* to, const char* from, int vector_bytes,
                                           bool is_there) {
  if (vector_bytes == 16) {
    ptx::copy_async_some(ptx::shared_address(to), from, is_there ? 16 : 0);
  } else {
    copy_narrow(to, from, 16, vector_bytes, is_there);
  }
}

// Behind what the warp has copied.
__device__ __forceinline__ void announce(uint32_t barrier) {
  ptx::arrive_behind_copies(barrier);
  arrive_as_warp(barrier);
}

// A quarter of a tile, a lane a key. What is not there is zeros.
template <class C>
__device__ __forceinline__ void gather_quarter(const CacheView& cache, int kv_head, char* tile,
                                               const Place& place) {
  constexpr int kChunks = C::kHeadDim / 8,
                kAtOnce = 32 / kChunks;  // rows that the warp copies at once
  constexpr int kSteps = C::kQuarterKeys / kAtOnce, kBatch = 8;
  const int lane = threadIdx.x % 32, chunk = lane % kChunks, lane_row = lane / kChunks;
  const int64_t offset = 2 * (kv_head * cache.head_stride + place.page * cache.page_stride +
                              place.slot * cache.slot_stride);
  const char* const chunks = static_cast<const char*>(cache.data) + chunk * 16;
  char* const first =
      tile + place_of(threadIdx.x / 32 * C::kQuarterKeys + lane_row, chunk, C::kPartBytes);
  if (place.is_there == ~0u && cache.dim == C::kHeadDim && cache.vector_bytes == 16) {
    const uint32_t to = ptx::shared_address(first);
#pragma unroll
    for (int batch = 0; batch < kSteps; batch += kBatch) {
      const char* from[kBatch];  // all at once: neither a shuffle nor a copy is then waited for
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        from[i] = chunks + __shfl_sync(~0u, offset, (batch + i) * kAtOnce + lane_row);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int row =
            (batch + i) * kAtOnce;  // its swizzle is the first row's, by an exclusive or
        ptx::copy_async_whole((to ^ (row & 7) * 16) + row * 128, from[i]);
      }
    }
    return;
  }
#pragma unroll 1
  for (int i = 0; i < kSteps; ++i) {
    const int row = i * kAtOnce, key = row + lane_row;
    const int64_t at = __shfl_sync(~0u, offset, key);
    const bool is_there = chunk * 8 < cache.dim && (place.is_there >> key & 1) != 0;
    copy_chunk(tile + place_of(threadIdx.x / 32 * C::kQuarterKeys + key, chunk, C::kPartBytes),
               is_there ? chunks + at : static_cast<const char*>(cache.data), cache.vector_bytes,
               is_there);
  }
}

// A task's tiles, of any page size and any strides: each warp a quarter of both keys and values, in the order in
// which they are used, keys of a tile before the values of the one before it.
template <class C>
__device__ __forceinline__ void load_rows(const Arguments& a, SharedMemory<C>& shared,
                                          const Task& task, Tiles tiles,
                                          Cursor<C::kStages>& stage) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto key_of_lane = [&](int tile) {
    // Lanes without a key look at the quarter's keys once more.
    return keys_of_tile<C>(tile).begin + warp * C::kQuarterKeys + lane % C::kQuarterKeys;
  };
  Cursor<C::kStages> key_stage = stage, value_stage = stage;
  int tile = tiles.begin;
  int32_t entry = read_entry<1>(a, task, key_of_lane(tile));
  Place place{}, before{};
  const int last = 2 * (tiles.end - tiles.begin) - 1;
#pragma unroll 1
  for (int i = 0; i <= last; ++i) {
    const bool is_keys = i == 0 || (i % 2 == 1 && i < last);
    if (is_keys || i == last) before = place;
    if (is_keys) {
      place = find_place<1>(a, task, key_of_lane(tile), entry);
      entry = read_entry<1>(a, task, key_of_lane(++tile));
    }
    // One code for both: it is long, and the consumers need the instruction cache.
    const Ring<C> ring(shared, is_keys);
    const Cursor<C::kStages> at = is_keys ? key_stage : value_stage;
    ring.wait_until_free(at);
    if (is_keys && lane == 0) shared.notes[at.at].is_bad[warp] = place.is_bad;
    gather_quarter<C>(is_keys ? a.keys : a.values, task.kv_head, ring.tile(at),
                      is_keys ? place : before);
    announce(ring.full_barrier(at));
    if (is_keys) key_stage.advance();
    if (!is_keys) value_stage.advance();
  }
  stage = key_stage;
}

// The boxes of a half tile, from lane `first` of `place` on. Straight code with their number known: a loop at run
// time is half as fast (the issue of a box takes 7 to 9 cycles). What is not there stays what it was.
template <class C, int kBoxRows>
__device__ __forceinline__ void copy_boxes(const CUtensorMap& map, int kv_head, uint32_t to,
                                           uint32_t barrier, int first, const Place& place) {
  constexpr int kBoxes = C::kHalfKeys / kBoxRows;
  constexpr uint32_t kBytes = kBoxRows * 128 * C::kParts;
  const uint32_t is_there = place.is_there >> first & ((1u << kBoxes) - 1);
  int32_t page[kBoxes], slot[kBoxes];
#pragma unroll
  for (int i = 0; i < kBoxes; ++i) {
    page[i] = __shfl_sync(~0u, place.page, first + i);
    slot[i] = __shfl_sync(~0u, place.slot, first + i);
  }
  if (!ptx::elect()) return;
  ptx::arrive(barrier);  // for the warp that brings nothing of this
  ptx::arrive_expecting(barrier, __popc(is_there) * kBytes);
#pragma unroll
  for (int i = 0; i < kBoxes; ++i) {
    if (!(is_there >> i & 1)) continue;
#pragma unroll
    for (int part = 0; part < C::kParts; ++part) {
      ptx::copy_box(to + part * C::kPartBytes + i * kBoxRows * 128, map, barrier, part * 64,
                    slot[i], page[i], kv_head);
    }
  }
}

// A bit a key of a half tile, of boxes of which each has a bit.
template <int kBoxRows>
__device__ __forceinline__ uint64_t keys_of_boxes(uint32_t boxes) {
  uint64_t keys = 0;
#pragma unroll 1
  for (; boxes != 0; boxes &= boxes - 1) {
    keys |= (~uint64_t{0} >> (64 - kBoxRows)) << (__ffs(boxes) - 1) * kBoxRows;
  }
  return keys;
}

// A task's tiles in boxes of kBoxRows keys of one page: two warps bring keys, two values, half of each tile. A lane
// looks up a box, so that a warp knows several tiles at once.
template <class C, int kBoxRows>
__device__ __forceinline__ void load_boxes(const Arguments& a, const TensorMaps& maps,
                                           SharedMemory<C>& shared, const Task& task, Tiles tiles,
                                           Cursor<C::kStages>& stage) {
  constexpr int kBoxes = C::kHalfKeys / kBoxRows, kTiles = 32 / kBoxes;
  const int lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32), half = warp % 2;
  const bool is_keys = warp < 2;
  const CUtensorMap& map = is_keys ? maps.keys : maps.values;
  const Ring<C> ring(shared, is_keys);
  const auto key_of_lane = [&](int first_tile) {
    return keys_of_tile<C>(first_tile + lane / kBoxes).begin + half * C::kHalfKeys +
           lane % kBoxes * kBoxRows;
  };
  const int kv_head = task.kv_head;
  int32_t entry = read_entry<kBoxRows>(a, task, key_of_lane(tiles.begin));
#pragma unroll 1
  for (int first = tiles.begin; first < tiles.end; first += kTiles) {
    const Place place = find_place<kBoxRows>(a, task, key_of_lane(first), entry);
    entry = read_entry<kBoxRows>(a, task, key_of_lane(first + kTiles));
    const int count = min(kTiles, tiles.end - first);
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      ring.wait_until_free(stage);
      if (is_keys && lane < 2) {
        const uint32_t boxes = place.is_bad >> i * kBoxes & ((1u << kBoxes) - 1);
        shared.notes[stage.at].is_bad[half * 2 + lane] =
            static_cast<uint32_t>(keys_of_boxes<kBoxRows>(boxes) >> lane * C::kQuarterKeys);
      }
      __syncwarp();
      copy_boxes<C, kBoxRows>(map, kv_head,
                              ptx::shared_address(ring.tile(stage)) + half * C::kHalfKeys * 128,
                              ring.full_barrier(stage), i * kBoxes, place);
      __syncwarp();
      stage.advance();
    }
  }
}

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
  int64_t at =
      (task.plan->query_start + first.token) * token_bytes + first.q_head * head_bytes + chunk * 16;
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
