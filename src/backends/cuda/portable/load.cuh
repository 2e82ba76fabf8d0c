// From pages to shared memory: where a tile's keys lie, and the copies that bring them.
#pragma once

#include "backends/cuda/device/chunks.cuh"
#include "backends/cuda/device/task.cuh"
#include "backends/cuda/portable/config.h"

namespace pagefill::cuda {

__device__ __forceinline__ uint32_t first_key_of(int tile) {
  return static_cast<uint32_t>(tile) * kTileKv;
}

// Tables are filled in for two tiles at once, the even one first: a thread a key.
static_assert(kThreads == 2 * kTileKv);

// The table entry of the thread's key, read long before it is used.
__device__ __forceinline__ int32_t read_entry(const Arguments& a, const Task& task, int even_tile) {
  const uint32_t key = first_key_of(even_tile) + threadIdx.x;
  int32_t entry = -1;
  if (task.any.contains(key)) {
    const int32_t page = a.page_size_divisor.quotient(static_cast<int32_t>(key) - task.kv_start);
    entry = a.page_table[task.sequence * a.table_seq_stride + page * a.table_entry_stride];
  }
  return entry;
}

__device__ __forceinline__ void read_scale(const CacheView& cache, float* to, int kv_head,
                                           int32_t page, int64_t slot, bool is_there) {
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

// Fills in the tables of two tiles from the entries that read_entry has read. An entry that is no page of the
// cache is reported, and never becomes an address.
template <class C>
__device__ __forceinline__ void fill_tables(const Arguments& a, const Task& task, int even_tile,
                                            int32_t entry, TileTable* tables) {
  const int in_tile = threadIdx.x % kTileKv, half = in_tile / 32;
  TileTable& table = tables[(even_tile + static_cast<int>(threadIdx.x) / kTileKv) % kTables];
  const uint32_t key = first_key_of(even_tile) + threadIdx.x;
  const bool is_needed = task.any.contains(key);
  const bool is_there = is_needed && entry >= 0 && entry < a.total_num_pages;
  const int32_t token = is_needed ? static_cast<int32_t>(key) - task.kv_start : 0;
  const int32_t page = a.page_size_divisor.quotient(token);
  const uint32_t bad = __ballot_sync(~0u, is_needed && !is_there);
  const uint32_t there = __ballot_sync(~0u, is_there);
  if (threadIdx.x % 32 == 0) {
    table.is_bad[half] = bad;
    table.is_there[half] = there;
    const KeyInterval keys{key, key + 32};
    table.must_mask[half] = bad != 0 || !task.all_visible.contains(keys);
    table.must_select[half] = !task.all_attended.contains(
        KeyInterval{max(keys.begin, task.any.begin), min(keys.end, task.any.end)});
  }
  if (bad != 0 && is_needed && !is_there) {
    report(a.status, CudaStatusCode::kPageTable, task.sequence, page, entry);
  }
  // Of what is not there, the address of the first slot, which is not read.
  const int64_t in_cache = is_there ? entry : 0, slot = is_there ? token - page * a.page_size : 0;
  const auto row = [&](const CacheView& cache) {
    const int64_t offset =
        task.kv_head * cache.head_stride + in_cache * cache.page_stride + slot * cache.slot_stride;
    const int64_t size = C::kIsFloat ? a.cache_element_size : C::kIsQuantised ? 1 : 2;
    return static_cast<const char*>(cache.data) + offset * size;
  };
  table.keys[in_tile] = row(a.keys);
  table.values[in_tile] = row(a.values);
  if constexpr (C::kIsStaged) {
    read_scale(a.keys, &table.key_scale[in_tile], task.kv_head, entry, slot, is_there);
    read_scale(a.values, &table.value_scale[in_tile], task.kv_head, entry, slot, is_there);
  }
}

// Where chunk `chunk` (16 elements of 8 bits) of a row lies: so that both the reading of two rows' halves and
// the writing of them as 16-bit numbers touch all 32 banks.
__device__ __forceinline__ int place_of_8_bits(int chunk, int row) { return chunk ^ (row & 1) * 4; }

// Starts to bring a piece: elements [first_dim, first_dim + kPiece) of a tile's keys or values, zeros where
// there are none. `rows` are the addresses of the tile's rows.
template <class C>
__device__ __forceinline__ void copy_piece(const CacheView& cache, const TileTable& table,
                                           const char* const* rows, int first_dim, int element_size,
                                           char* piece) {
  // 16 bytes, but for the kernel of float32, which takes any cache.
  constexpr int kChunkDims = C::kIsQuantised ? 16 : 8;
  if constexpr (C::kIsQuantised) element_size = 1;
  if constexpr (!C::kIsStaged) element_size = 2;
  constexpr int kChunks = C::kPiece / kChunkDims, kSteps = kTileKv * kChunks / kThreads;
  constexpr int kRowStep = kThreads / kChunks;  // a multiple of 8: a thread's rows lie alike
  const int chunk = threadIdx.x % kChunks, first_row = threadIdx.x / kChunks;
  const int dim = first_dim + chunk * kChunkDims, bytes = kChunkDims * element_size;
  const int place = C::kIsQuantised ? place_of_8_bits(chunk, first_row)
                    : C::kIsStaged  ? chunk
                                    : swizzled(chunk, first_row);
  const int row_bytes = C::kPiece * element_size;
  rows += first_row;
  piece += first_row * row_bytes + place * bytes;
  if (!C::kIsFloat && cache.vector_bytes == 16) {
    const uint32_t to = ptx::shared_address(piece);
    const bool is_whole =
        (table.is_there[0] & table.is_there[1]) == ~0u && first_dim + C::kPiece <= cache.dim;
    const char* from[kSteps];  // read all at once: a copy waits for its address
#pragma unroll
    for (int i = 0; i < kSteps; ++i) from[i] = rows[i * kRowStep] + dim * element_size;
    if (is_whole) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        ptx::copy_async_whole(to + i * kRowStep * row_bytes, from[i]);
      }
      return;
    }
    // 8 elements of 8 bits may be the last.
    const int size = max(0, min(16, (cache.dim - dim) * element_size));
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int row = first_row + i * kRowStep;
      const bool is_there = (table.is_there[row / 32] >> (row % 32) & 1) != 0 && size > 0;
      ptx::copy_async_some(to + i * kRowStep * row_bytes,
                           is_there ? from[i] : static_cast<const char*>(cache.data),
                           is_there ? size : 0);
    }
    return;
  }
  // In loops: the code of the main loop is to stay in the instruction cache.
#pragma unroll 1
  for (int i = 0; i < kSteps; ++i) {
    const int row = first_row + i * kRowStep;
#pragma unroll 1
    for (int part = 0; part < kChunkDims; part += 8) {
      const bool is_there =
          (table.is_there[row / 32] >> (row % 32) & 1) != 0 && dim + part < cache.dim;
      const char* const from = is_there ? rows[i * kRowStep] + (dim + part) * element_size
                                        : static_cast<const char*>(cache.data);
      copy_narrow(piece + i * kRowStep * row_bytes + part * element_size, from, 8 * element_size,
                  cache.vector_bytes, is_there);
    }
  }
}

}  // namespace pagefill::cuda
