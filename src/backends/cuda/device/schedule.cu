// What there is to do, from lengths that lie on the device: one block looks at all sequences.
#include <algorithm>

#include "backends/cuda/device/schedule.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/ptx/grid.h"

namespace pagefill::cuda {
namespace {

constexpr int kMostThreads = 1024;  // a thread a sequence

// The sum over the warp of `value`, of the lanes up to this one.
__device__ int64_t sum_up_to_lane(int64_t value) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int64_t before = __shfl_up_sync(~0u, value, step);
    if (lane >= step) value += before;
  }
  return value;
}

// The sum over the block of `value`, of the threads before this one; `*total` is that of all. Every thread
// of the block calls it. No copies of it: an instruction that runs for the first time takes some 6 ns.
__device__ __noinline__ int64_t sum_before(int64_t value, int64_t* total) {
  __shared__ int64_t warp_sums[kMostThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
  const int64_t sum = sum_up_to_lane(value);
  if (num_warps == 1) {
    *total = __shfl_sync(~0u, sum, 31);
    return sum - value;
  }
  __syncthreads();  // of the last call, all have read
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  const int64_t of_warps = sum_up_to_lane(lane < num_warps ? warp_sums[lane] : 0);
  *total = __shfl_sync(~0u, of_warps, 31);
  return sum - value + (warp == 0 ? 0 : __shfl_sync(~0u, of_warps, warp - 1));
}

__global__ void __launch_bounds__(kMostThreads) schedule(const __grid_constant__ Arguments a) {
  ptx::begin_kernel_behind();
  ptx::wait_for_kernel_before();
  SequencePlan* const sequences = a.workspace.sequences;
  bool is_bad = false;
  int64_t segments = 0;  // of all row tiles that this thread looks at
  SequencePlan p{};
  for (int64_t s = threadIdx.x; s < a.num_seqs; s += blockDim.x) {
    if (!starts_are_good(a, s)) {
      is_bad = true;
      continue;
    }
    p = plan_sequence(a, s);
    sequences[s] = p;
    segments += int64_t{p.num_tiles} * p.num_segments;
  }
  is_bad = __syncthreads_or(is_bad);
  if (is_bad) {
    if (threadIdx.x == 0) *a.workspace.header = bad_header();
    return;
  }
  int64_t total_segments;
  sum_before(segments, &total_segments);

  Placed placed;
  for (int64_t base = 0; base < a.num_seqs; base += blockDim.x) {
    const int64_t s = base + threadIdx.x;
    const bool is_there = s < a.num_seqs;
    if (a.num_seqs > blockDim.x)
      p = is_there ? sequences[s] : SequencePlan{};  // else it is at hand
    place_sequence(a, total_segments, sum_before, placed, p);
    if (is_there) sequences[s] = p;
  }
  if (threadIdx.x == 0) *a.workspace.header = header_of(a, placed);
}

}  // namespace

cudaError_t launch_schedule(const Arguments& a, const Stream& stream) {
  void* arguments[] = {const_cast<Arguments*>(&a)};
  const int64_t threads = std::min(round_up(a.num_seqs, 32), int64_t{kMostThreads});
  return launch(reinterpret_cast<const void*>(&schedule), 1, static_cast<int>(threads), 0,
                arguments, stream);
}

}  // namespace pagefill::cuda
