// What loading by rows and by boxes have in common: stages, table entries, and where 8 elements lie.
#pragma once

#include "backends/cuda/device/chunks.cuh"
#include "backends/cuda/sm90/shared.cuh"

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

}  // namespace pagefill::cuda::sm90
