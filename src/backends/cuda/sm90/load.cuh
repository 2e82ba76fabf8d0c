// From pages to shared memory: boxes by the copy engine, or rows by cp.async; and the queries.
#pragma once

#include "backends/cuda/device/chunks.cuh"
#include "backends/cuda/ptx/tensor_copy.h"
#include "backends/cuda/sm90/shared.cuh"
#include "backends/cuda/sm90/tensor_maps.h"

namespace pagefill::cuda::sm90 {

// What a producer warp brings of every tile: half of its keys, or half of its values.
template <class C>
struct Share {
  bool is_keys;
  int half;
  char* tiles;  // of the first stage, as the barriers; the others follow
  uint32_t full, free;
  KeyNotes<C>* notes;
  Cursor<C::kStages> stage{};

  __device__ Share(SharedMemory<C>& shared, int warp)
      : is_keys(warp < kTileWarps),
        half(warp % kTileWarps),
        tiles(is_keys ? shared.keys[0] : shared.values[0]),
        full(ptx::shared_address(is_keys ? shared.barriers.keys_full : shared.barriers.values_full)),
        free(ptx::shared_address(is_keys ? shared.barriers.keys_free : shared.barriers.values_free)),
        notes(shared.notes) {}

  __device__ __forceinline__ char* tile() const { return tiles + stage.at * C::kTileBytes; }
  __device__ __forceinline__ uint32_t full_barrier() const { return full + stage.at * 8; }
  __device__ __forceinline__ void wait_until_free() const {
    ptx::wait(free + stage.at * 8, stage.parity ^ 1);
  }
  __device__ __forceinline__ uint32_t first_key(int tile) const {
    return keys_of_tile<C>(tile).begin + half * C::kHalfKeys;
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

// 32 keys, a lane each, to rows `first_row` and following of a tile. What is not there is zeros.
template <class C>
__device__ __forceinline__ void gather(const CacheView& cache, int kv_head, char* tile,
                                       int first_row, const Place& place) {
  constexpr int kChunks = C::kHeadDim / 8,
                kAtOnce = 32 / kChunks;  // rows that the warp copies at once
  constexpr int kSteps = 32 / kAtOnce, kBatch = 8;
  const int lane = threadIdx.x % 32, chunk = lane % kChunks, lane_row = lane / kChunks;
  const int64_t offset = 2 * (kv_head * cache.head_stride + place.page * cache.page_stride +
                              place.slot * cache.slot_stride);
  const char* const chunks = static_cast<const char*>(cache.data) + chunk * 16;
  if (place.is_there == ~0u && cache.dim == C::kHeadDim && cache.vector_bytes == 16) {
    const uint32_t to =
        ptx::shared_address(tile + place_of(first_row + lane_row, chunk, C::kPartBytes));
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
    const int key = i * kAtOnce + lane_row;
    const int64_t at = __shfl_sync(~0u, offset, key);
    const bool is_there = chunk * 8 < cache.dim && (place.is_there >> key & 1) != 0;
    copy_chunk(tile + place_of(first_row + key, chunk, C::kPartBytes),
               is_there ? chunks + at : static_cast<const char*>(cache.data), cache.vector_bytes,
               is_there);
  }
}

// A share of a task's tiles, of any page size and any strides.
template <class C>
__device__ __forceinline__ void load_rows(const Arguments& a, const Task& task, Tiles tiles,
                                          Share<C>& share) {
  constexpr int kSets = C::kHalfKeys / 32;
  const int lane = threadIdx.x % 32;
  const CacheView& cache = share.is_keys ? a.keys : a.values;
  int32_t entries[kSets];
  const auto read_entries = [&](int tile) {
#pragma unroll
    for (int i = 0; i < kSets; ++i) {
      entries[i] = read_entry<1>(a, task, share.first_key(tile) + i * 32 + lane);
    }
  };
  read_entries(tiles.begin);
#pragma unroll 1
  for (int tile = tiles.begin; tile < tiles.end; ++tile) {
    Place places[kSets];
#pragma unroll
    for (int i = 0; i < kSets; ++i) {
      places[i] = find_place<1>(a, task, share.first_key(tile) + i * 32 + lane, entries[i]);
    }
    read_entries(tile + 1);
    share.wait_until_free();
#pragma unroll
    for (int i = 0; i < kSets; ++i) {
      if (share.is_keys && lane == 0) {
        share.notes[share.stage.at].is_bad[share.half * kSets + i] = places[i].is_bad;
      }
      gather<C>(cache, task.kv_head, share.tile(), share.half * C::kHalfKeys + i * 32, places[i]);
    }
    announce(share.full_barrier());
    share.stage.advance();
  }
}

// The boxes of a half tile, from lane `first` of `place` on. Straight code with their number known: a loop at run
// time is half as fast (the issue of a box takes 7 to 9 cycles). What is not there stays what it was.
template <class C, int kBoxRows>
__device__ __forceinline__ void copy_boxes(const CUtensorMap& map, int kv_head, int first,
                                           const Place& place, const Share<C>& share) {
  constexpr int kBoxes = C::kHalfKeys / kBoxRows;
  constexpr uint32_t kAll = (1u << kBoxes) - 1;
  constexpr uint32_t kBytes = kBoxRows * 128 * C::kParts;
  const uint32_t is_there = place.is_there >> first & kAll, is_bad = place.is_bad >> first & kAll;
  int32_t page[kBoxes], slot[kBoxes];
#pragma unroll
  for (int i = 0; i < kBoxes; ++i) {
    page[i] = __shfl_sync(~0u, place.page, first + i);
    slot[i] = __shfl_sync(~0u, place.slot, first + i);
  }
  if (!ptx::elect()) return;
  if (share.is_keys) {
#pragma unroll
    for (int word = 0; word < C::kHalfKeys / 32; ++word) {
      uint32_t bad_keys = 0;
      for (int bit = 0; is_bad != 0 && bit < 32; ++bit) {
        bad_keys |= (is_bad >> (word * 32 + bit) / kBoxRows & 1) << bit;
      }
      share.notes[share.stage.at].is_bad[share.half * (C::kHalfKeys / 32) + word] = bad_keys;
    }
  }
  const uint32_t barrier = share.full_barrier();
  const uint32_t to = ptx::shared_address(share.tile()) + share.half * C::kHalfKeys * 128;
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

// A share of a task's tiles in boxes of kBoxRows keys of one page. A lane looks up a box, so that a warp knows
// several tiles at once.
template <class C, int kBoxRows>
__device__ __forceinline__ void load_boxes(const Arguments& a, const CUtensorMap& map,
                                           const Task& task, Tiles tiles, Share<C>& share) {
  constexpr int kBoxes = C::kHalfKeys / kBoxRows, kTiles = 32 / kBoxes;
  const int lane = threadIdx.x % 32;
  const auto key_of_lane = [&](int first_tile) {
    return share.first_key(first_tile + lane / kBoxes) + lane % kBoxes * kBoxRows;
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
      share.wait_until_free();
      copy_boxes<C, kBoxRows>(map, kv_head, i * kBoxes, place, share);
      __syncwarp();
      share.stage.advance();
    }
  }
}

template <class C>
__device__ __forceinline__ void load_tiles(const Arguments& a, const TensorMaps& maps,
                                           const Task& task, Tiles tiles, Share<C>& share) {
  const CUtensorMap& map = share.is_keys ? maps.keys : maps.values;
  switch (comes_as_boxes(maps.box_rows, task) ? maps.box_rows : 0) {
    case 0:
      return load_rows<C>(a, task, tiles, share);
    case 4:
      return load_boxes<C, 4>(a, map, task, tiles, share);
    case 8:
      return load_boxes<C, 8>(a, map, task, tiles, share);
    case 16:
      return load_boxes<C, 16>(a, map, task, tiles, share);
    case 32:
      return load_boxes<C, 32>(a, map, task, tiles, share);
    default:
      if constexpr (C::kHalfKeys == 64) load_boxes<C, 64>(a, map, task, tiles, share);
  }
}

// The queries of a row tile, zeros behind its rows and behind head_dim. By `kThreads` threads, of which this is
// `thread`.
template <class C, int kThreads>
__device__ __forceinline__ void copy_queries(const Arguments& a, const Task& task, int thread,
                                             char* queries) {
  constexpr int kChunks = C::kHeadDim / 8;
  const int chunk = thread % kChunks;
  const auto* const data = static_cast<const char*>(a.query.data);
#pragma unroll 2
  for (int row = thread / kChunks; row < C::kTileRows; row += kThreads / kChunks) {
    const bool is_there = row < task.num_rows && chunk * 8 < a.keys.dim;
    const TaskRow at_row = row_of(a, task, row);
    const int64_t at = (task.plan->query_start + at_row.token) * a.query.token_stride +
                       at_row.q_head * a.query.head_stride + chunk * 8;
    copy_chunk(queries + place_of(row, chunk, C::kQueryPartBytes), is_there ? data + at * 2 : data,
               a.query.vector_bytes, is_there);
  }
}

}  // namespace pagefill::cuda::sm90
