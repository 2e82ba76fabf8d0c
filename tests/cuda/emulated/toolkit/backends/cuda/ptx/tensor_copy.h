// In place of src/backends/cuda/ptx/tensor_copy.h.
#pragma once

#include <cuda.h>

#include "machine/device.h"

namespace pagefill::cuda::ptx {

inline void prefetch_map(const CUtensorMap&) {}

inline void copy_box(uint32_t to, const CUtensorMap& map, uint32_t barrier, int x, int y, int z,
                     int w) {
  emulated::copy_box(to, &map, barrier, x, y, z, w);
}

}  // namespace pagefill::cuda::ptx
