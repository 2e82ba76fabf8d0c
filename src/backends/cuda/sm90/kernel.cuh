// The forward kernel for Hopper from top to bottom; its parts are in the files beside it. One block a
// multiprocessor takes tasks until none is left: a warpgroup brings tiles, the others compute.
#pragma once

#include <limits>

#include "backends/cuda/kernels.h"
#include "backends/cuda/ptx/grid.h"
#include "backends/cuda/sm90/consume.cuh"
#include "backends/cuda/sm90/produce.cuh"

namespace pagefill::cuda::sm90 {

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    forward(const __grid_constant__ Arguments a, const __grid_constant__ TensorMaps maps) {
  extern __shared__ __align__(1024) char memory[];
  SharedMemory<C>& shared = *reinterpret_cast<SharedMemory<C>*>(memory);
  if (threadIdx.x == 0) {
    init_barriers<C>(shared.barriers);
    if (maps.box_rows > 0) ptx::prefetch_map(maps.keys), ptx::prefetch_map(maps.values);
  }
  ptx::begin_kernel_behind();
  ptx::wait_for_kernel_before();
  __syncthreads();
  if (uniform(threadIdx.x / kGroupThreads) == 0) {
    if constexpr (C::kSharesRegisters) ptx::give_registers<C::kProducerRegisters>();
    produce<C>(a, maps, shared);
  } else {
    if constexpr (C::kSharesRegisters) ptx::take_registers<C::kConsumerRegisters>();
    consume<C>(a, maps.box_rows, shared);
  }
}

// A row of the table of kernels.
template <class C>
ForwardKernel forward_kernel(DType dtype) {
  static_assert(kSegmentKv % C::kTileKv == 0);
  return {"sm90",
          90,
          dtype,
          Cache::kSame,
          C::kHeadDim,
          C::kHeadDim,
          C::kConsumers > 1 ? Tile::kManyRows : Tile::kFewRows,
          C::kTileRows,
          C::kThreads,
          C::kTotalsAreShared ? 0 : C::kTotalBytes / 4,
          std::numeric_limits<int>::max(),
          C::kMostBoxRows,
          true,
          reinterpret_cast<const void*>(&forward<C>),
          [](int, int, int) { return sizeof(SharedMemory<C>); }};
}

}  // namespace pagefill::cuda::sm90
