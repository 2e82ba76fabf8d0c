// From rows of a cache to shared memory, and where their 16-byte chunks lie there.
#pragma once

#include <cstdint>
#include <type_traits>

#include "backends/cuda/ptx/copy.h"

namespace pagefill::cuda {

// Where chunk `chunk` (8 elements of 16 bits) of a row lies: exchanged with the row's number, so that 8 rows
// of one chunk lie in 32 banks.
__device__ __forceinline__ int swizzled(int chunk, int row) { return chunk ^ (row & 7); }

// Any other than 16 bytes at once: the width that the addresses allow.
template <int kBytes>
__device__ __forceinline__ void copy_in_steps(char* to, const char* from, int bytes,
                                              bool is_there) {
#pragma unroll 1
  for (int at = 0; at < bytes; at += kBytes) {
    if constexpr (kBytes >= 4) {
      ptx::copy_async<kBytes>(ptx::shared_address(to + at), from + at, is_there);
    } else {
      using T = std::conditional_t<kBytes == 2, uint16_t, uint8_t>;
      *reinterpret_cast<T*>(to + at) = is_there ? *reinterpret_cast<const T*>(from + at) : T{0};
    }
  }
}

__device__ __forceinline__ void copy_narrow(char* to, const char* from, int bytes, int vector_bytes,
                                            bool is_there) {
  switch (vector_bytes) {
    case 16:
    case 8:
      return copy_in_steps<8>(to, from, bytes, is_there);
    case 4:
      return copy_in_steps<4>(to, from, bytes, is_there);
    case 2:
      return copy_in_steps<2>(to, from, bytes, is_there);
    default:
      return copy_in_steps<1>(to, from, bytes, is_there);
  }
}

}  // namespace pagefill::cuda
