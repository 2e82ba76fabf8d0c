// Keys and values by cp.async, row by row: any page size and any strides.
#pragma once

#include "backends/cuda/sm90/load.cuh"

namespace pagefill::cuda::sm90 {

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

}  // namespace pagefill::cuda::sm90
