// From pages to shared memory: where a tile's keys lie, and the copies that bring them.
#pragma once

#include "backends/cuda/device/find.cuh"
#include "backends/cuda/portable/config.h"
#include "backends/cuda/ptx/copy.h"

namespace pagefill::cuda {

// The keys of one task: of a sequence, for a row tile, of one KV head.
struct TaskKeys {
  int64_t sequence;
  int32_t kv_start;
  int32_t begin, end;  // absolute positions that some row of the task takes
  int kv_head;

  __device__ bool contains(int32_t key) const { return key >= begin && key < end; }
};

// The table entry of a key of a tile, read long before it is used. A thread a key.
__device__ __forceinline__ int32_t read_entry(const Arguments& a, const TaskKeys& keys, int tile) {
  const int32_t key = tile * kTileKv + static_cast<int>(threadIdx.x);
  if (threadIdx.x >= kTileKv || !keys.contains(key)) return -1;
  const int32_t page = (key - keys.kv_start) / a.page_size;
  return a.page_table[keys.sequence * a.table_seq_stride + page * a.table_entry_stride];
}

__device__ __forceinline__ void read_scale(const CacheView& cache, float* to, int kv_head,
                                           int32_t page, int32_t slot, bool is_there) {
  if (cache.scale == nullptr) {
    *to = 1;
    return;
  }
  const float* from = cache.scale;
  if (is_there) {
    from += kv_head * cache.scale_head_stride + page * cache.scale_page_stride +
            slot * cache.scale_slot_stride;
  }
  ptx::copy_async<4>(ptx::shared_address(to), from, is_there);
}

// Fills in the table of a tile from the entries that read_entry has read. An entry that is no page of the
// cache is reported, and never becomes an address.
template <class C>
__device__ __forceinline__ void fill_table(const Arguments& a, const TaskKeys& keys, int tile,
                                           int32_t entry, TileTable& table) {
  const int lane_key = threadIdx.x;
  if (lane_key >= kTileKv) return;
  const int32_t key = tile * kTileKv + lane_key;
  const bool is_needed = keys.contains(key);
  const bool is_page = entry >= 0 && entry < a.total_num_pages;
  const int32_t token = key - keys.kv_start;
  const int32_t slot = is_needed ? token % a.page_size : 0;
  const bool is_there = is_needed && is_page;
  const uint32_t bad = __ballot_sync(~0u, is_needed && !is_page);
  if (lane_key % 32 == 0) table.is_bad[lane_key / 32] = bad;
  if (is_needed && !is_page) {
    report(a.status, CudaStatusCode::kPageTable, keys.sequence, token / a.page_size, entry);
  }
  const auto offset = [&](const CacheView& cache) {
    return is_there ? keys.kv_head * cache.head_stride + entry * cache.page_stride +
                          slot * cache.slot_stride
                    : -1;
  };
  table.key_offset[lane_key] = offset(a.keys);
  table.value_offset[lane_key] = offset(a.values);
  if constexpr (C::kIsStaged) {
    read_scale(a.keys, &table.key_scale[lane_key], keys.kv_head, entry, slot, is_there);
    read_scale(a.values, &table.value_scale[lane_key], keys.kv_head, entry, slot, is_there);
  }
}

// Where chunk `chunk` (8 elements of 16 bits) of a row lies: exchanged with the row's number, so that 8 rows
// of one chunk lie in 32 banks.
__device__ __forceinline__ int swizzled(int chunk, int row) { return chunk ^ (row & 7); }

// 8 elements by copies of the width that the addresses allow.
__device__ __forceinline__ void copy_elements(char* to, const char* from, int bytes,
                                              int vector_bytes, int element_size, bool is_there) {
  if (vector_bytes >= 16 && bytes >= 16) {
    for (int at = 0; at < bytes; at += 16) {
      ptx::copy_async<16>(ptx::shared_address(to + at), from + at, is_there);
    }
  } else if (vector_bytes >= 8) {
    for (int at = 0; at < bytes; at += 8) {
      ptx::copy_async<8>(ptx::shared_address(to + at), from + at, is_there);
    }
  } else if (vector_bytes >= 4) {
    for (int at = 0; at < bytes; at += 4) {
      ptx::copy_async<4>(ptx::shared_address(to + at), from + at, is_there);
    }
  } else if (element_size == 2) {
    for (int at = 0; at < bytes; at += 2) {
      *reinterpret_cast<uint16_t*>(to + at) =
          is_there ? *reinterpret_cast<const uint16_t*>(from + at) : uint16_t{0};
    }
  } else {
    for (int at = 0; at < bytes; ++at) to[at] = is_there ? from[at] : '\0';
  }
}

// Starts to bring a piece: elements [first_dim, first_dim + kPiece) of a tile's keys or values, zeros where
// there are none.
template <class C>
__device__ __forceinline__ void copy_piece(const CacheView& cache, const int64_t* offsets,
                                           int first_dim, int element_size, char* piece) {
  constexpr int kChunks = C::kPiece / 8;
  const char* const data = static_cast<const char*>(cache.data);
  const int chunk = threadIdx.x % kChunks;
  const int dim = first_dim + chunk * 8;
#pragma unroll
  for (int i = 0; i < kTileKv * kChunks / kThreads; ++i) {
    const int row = threadIdx.x / kChunks + i * (kThreads / kChunks);
    const int64_t offset = offsets[row];
    const bool is_there = offset >= 0 && dim < cache.dim;
    if constexpr (C::kIsStaged) {
      const char* const from = data + (is_there ? offset + dim : 0) * element_size;
      copy_elements(piece + (row * C::kPiece + chunk * 8) * element_size, from, 8 * element_size,
                    cache.vector_bytes, element_size, is_there);
    } else {
      const char* const from = data + (is_there ? offset + dim : 0) * 2;
      char* const to = piece + row * C::kPiece * 2 + swizzled(chunk, row) * 16;
      if (cache.vector_bytes >= 16) {
        ptx::copy_async<16>(ptx::shared_address(to), from, is_there);
      } else {
        copy_elements(to, from, 16, cache.vector_bytes, 2, is_there);
      }
    }
  }
}

}  // namespace pagefill::cuda
