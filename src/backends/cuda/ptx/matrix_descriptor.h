// Where wgmma finds a matrix in shared memory.
#pragma once

#include <cstdint>

namespace pagefill::cuda::ptx {

// Where a matrix lies in shared memory: rows of 128 bytes whose 16-byte chunks are exchanged by the row's
// number (swizzle of 128 bytes), in groups of 8 rows that are `group_bytes` apart; `part_bytes` lie between
// two parts of 64 columns of a matrix that is read along its rows' columns.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, uint32_t part_bytes,
                                                      uint32_t group_bytes) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<uint64_t>(part_bytes >> 4) << 16 |
         static_cast<uint64_t>(group_bytes >> 4) << 32 | uint64_t{1} << 62;
}

// The descriptor of what lies `bytes` further on.
__device__ __forceinline__ uint64_t advanced(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

}  // namespace pagefill::cuda::ptx
