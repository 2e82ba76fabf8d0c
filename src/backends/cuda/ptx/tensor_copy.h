// Boxes of a tensor from global to shared memory by Hopper's copy engine.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace pagefill::cuda::ptx {

// Before its first box.
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The box at these coordinates, innermost first; its bytes, zeros outside of the tensor included, count
// for `barrier`.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                         int x, int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cta.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

}  // namespace pagefill::cuda::ptx
