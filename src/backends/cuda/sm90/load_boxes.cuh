// Keys and values by the copy engine, in boxes of some keys of a page.
#pragma once

#include "backends/cuda/ptx/tensor_copy.h"
#include "backends/cuda/sm90/load.cuh"
#include "backends/cuda/sm90/tensor_maps.h"

namespace pagefill::cuda::sm90 {

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

}  // namespace pagefill::cuda::sm90
