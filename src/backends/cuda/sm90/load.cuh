// From pages to shared memory: boxes by the copy engine, or rows by cp.async; and the queries. Each of the four
// producer warps brings a quarter of every tile.
#pragma once

#include "backends/cuda/device/chunks.cuh"
#include "backends/cuda/ptx/tensor_copy.h"
#include "backends/cuda/sm90/shared.cuh"
#include "backends/cuda/sm90/tensor_maps.h"

namespace pagefill::cuda::sm90 {

// The keys of a warp's quarter of a tile: a lane a key.
struct Quarter {
  int32_t page, slot;  // of this lane's key
  uint32_t is_there;   // a bit a key
  uint32_t is_bad;     // needed, but its table entry is no page
};

template <class C>
__device__ __forceinline__ uint32_t key_of_lane(int tile) {
  return keys_of_tile<C>(tile).begin + threadIdx.x / 32 * C::kQuarterKeys + threadIdx.x % 32;
}

template <class C>
__device__ __forceinline__ bool is_needed(const Task& task, uint32_t key) {
  return (C::kQuarterKeys == 32 || threadIdx.x % 32 < C::kQuarterKeys) && task.any.contains(key);
}

// The table entry of the lane's key, read long before it is used.
template <class C>
__device__ __forceinline__ int32_t read_entry(const Arguments& a, const Task& task, int tile) {
  const uint32_t key = key_of_lane<C>(tile);
  if (!is_needed<C>(task, key)) return -1;
  const int32_t page = a.page_size_divisor.quotient(static_cast<int32_t>(key) - task.kv_start);
  return __ldg(a.page_table + task.sequence * a.table_seq_stride + page * a.table_entry_stride);
}

// An entry that is no page of the cache is reported, and never becomes an address.
template <class C>
__device__ __forceinline__ Quarter find_quarter(const Arguments& a, const Task& task, int tile,
                                                int32_t entry) {
  const uint32_t key = key_of_lane<C>(tile);
  // Before the table's first slot, and behind the largest position, there are none.
  const int32_t token = max(static_cast<int32_t>(key) - task.kv_start, 0);
  const int32_t page = a.page_size_divisor.quotient(token);
  const bool needed = is_needed<C>(task, key);
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

// Any page size and any strides. What is not there is zeros.
template <class C>
__device__ __forceinline__ void gather_quarter(const CacheView& cache, int kv_head, char* tile,
                                               const Quarter& quarter) {
  constexpr int kChunks = C::kHeadDim / 8,
                kAtOnce = 32 / kChunks;  // rows that the warp copies at once
  constexpr int kSteps = C::kQuarterKeys / kAtOnce, kBatch = 8;
  const int lane = threadIdx.x % 32, chunk = lane % kChunks, lane_row = lane / kChunks;
  const int64_t offset = 2 * (kv_head * cache.head_stride + quarter.page * cache.page_stride +
                              quarter.slot * cache.slot_stride);
  const char* const chunks = static_cast<const char*>(cache.data) + chunk * 16;
  char* const first =
      tile + place_of(threadIdx.x / 32 * C::kQuarterKeys + lane_row, chunk, C::kPartBytes);
  constexpr uint32_t kAll = static_cast<uint32_t>((1ull << C::kQuarterKeys) - 1);
  if (quarter.is_there == kAll && cache.dim == C::kHeadDim && cache.vector_bytes == 16) {
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
    const bool is_there = chunk * 8 < cache.dim && (quarter.is_there >> key & 1) != 0;
    copy_chunk(tile + place_of(threadIdx.x / 32 * C::kQuarterKeys + key, chunk, C::kPartBytes),
               is_there ? chunks + at : static_cast<const char*>(cache.data), cache.vector_bytes,
               is_there);
  }
}

// A box is kBoxRows keys of one page. Straight code with the number of boxes known: a loop at run time is
// half as fast (the issue of a box takes 7 to 9 cycles). What is not there stays what it was.
template <class C, int kBoxRows>
__device__ __forceinline__ void copy_boxes(const CUtensorMap& map, int kv_head, uint32_t tile,
                                           uint32_t barrier, const Quarter& quarter) {
  constexpr int kBoxes = C::kQuarterKeys / kBoxRows;
  const int first_row = __shfl_sync(~0u, threadIdx.x / 32, 0) * C::kQuarterKeys;
  constexpr uint32_t kBoxKeys = static_cast<uint32_t>((1ull << kBoxRows) - 1);
  int32_t page[kBoxes], slot[kBoxes];
  uint32_t bytes = 0;
#pragma unroll
  for (int i = 0; i < kBoxes; ++i) {
    const uint32_t keys = quarter.is_there & kBoxKeys << (i * kBoxRows);
    page[i] = __shfl_sync(~0u, quarter.page, keys == 0 ? 0 : __ffs(keys) - 1);
    slot[i] = __shfl_sync(~0u, quarter.slot, i * kBoxRows);
    if (keys == 0) page[i] = -1;
    if (keys != 0) bytes += kBoxRows * 128 * C::kParts;
  }
  if (!ptx::elect()) return;
  ptx::arrive_expecting(barrier, bytes);
#pragma unroll
  for (int i = 0; i < kBoxes; ++i) {
    if (page[i] < 0) continue;
#pragma unroll
    for (int part = 0; part < C::kParts; ++part) {
      ptx::copy_box(tile + part * C::kPartBytes + (first_row + i * kBoxRows) * 128, map, barrier,
                    part * 64, slot[i], page[i], kv_head);
    }
  }
}

template <class C>
__device__ __forceinline__ void copy_quarter(const CUtensorMap& map, int box_rows, int kv_head,
                                             uint32_t tile, uint32_t barrier,
                                             const Quarter& quarter) {
  switch (box_rows) {
    case 4:
      return copy_boxes<C, 4>(map, kv_head, tile, barrier, quarter);
    case 8:
      return copy_boxes<C, 8>(map, kv_head, tile, barrier, quarter);
    case 16:
      return copy_boxes<C, 16>(map, kv_head, tile, barrier, quarter);
    default:
      if constexpr (C::kQuarterKeys == 32) copy_boxes<C, 32>(map, kv_head, tile, barrier, quarter);
  }
}

// The queries of a row tile, zeros behind its rows and behind head_dim.
template <class C>
__device__ __forceinline__ void copy_queries(const Arguments& a, const Task& task, char* queries) {
  constexpr int kChunks = C::kHeadDim / 8;
  const int chunk = threadIdx.x % kChunks;
  const auto* const data = static_cast<const char*>(a.query.data);
#pragma unroll 2
  for (int row = threadIdx.x / kChunks; row < C::kTileRows; row += kGroupThreads / kChunks) {
    const bool is_there = row < task.num_rows && chunk * 8 < a.keys.dim;
    const TaskRow at_row = row_of(a, task, row);
    const int64_t at = (task.plan->query_start + at_row.token) * a.query.token_stride +
                       at_row.q_head * a.query.head_stride + chunk * 8;
    copy_chunk(queries + place_of(row, chunk, C::kQueryPartBytes), is_there ? data + at * 2 : data,
               a.query.vector_bytes, is_there);
  }
}

}  // namespace pagefill::cuda::sm90
