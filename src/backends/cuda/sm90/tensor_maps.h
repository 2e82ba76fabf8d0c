// How the copy engine sees the caches.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "backends/cuda/arguments.h"

namespace pagefill::cuda::sm90 {

// A box is `box_rows` slots of one page and one KV head, and 64 elements of each. 0: there are none, because
// the page size is odd or twice an odd number, or strides or addresses are no multiples of 16 bytes.
struct TensorMaps {
  CUtensorMap keys, values;
  int box_rows = 0;
};

// A box has at most `most_rows`, and begins at a multiple of its rows, counted from the page table's first slot,
// so that it lies in one page and, where kv_start is a multiple of them too, in one producer warp's share.
TensorMaps make_tensor_maps(const Arguments& a, int most_rows);

}  // namespace pagefill::cuda::sm90
