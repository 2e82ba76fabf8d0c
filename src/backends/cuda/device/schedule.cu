// What there is to do, from lengths that lie on the device: one block looks at all sequences.
#include <algorithm>
#include <limits>

#include "backends/cuda/config.h"
#include "backends/cuda/device/find.cuh"
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

__device__ bool starts_are_good(const Arguments& a, int64_t s) {
  if (a.query_starts.data == nullptr) return true;
  const int32_t start = a.query_starts[s], end = a.query_starts[s + 1];
  if (s == 0 && start != 0) {
    report(a.status, CudaStatusCode::kQueryStarts, 0, 0, start);
    return false;
  }
  if (end >= start && end <= a.total_tokens) return true;
  report(a.status, CudaStatusCode::kQueryStarts, s, s + 1, end);
  return false;
}

__device__ bool lengths_are_good(const Arguments& a, int64_t s, const SequencePlan& p) {
  if (p.num_rows > a.max_chunk_size) {
    report(a.status, CudaStatusCode::kChunkSize, s, 0, p.num_rows);
    return false;
  }
  if (p.kv_start < 0) {
    report(a.status, CudaStatusCode::kKvStart, s, 0, p.kv_start);
    return false;
  }
  const int64_t num_keys = int64_t{p.context_len} - p.kv_start;
  if (p.context_len < 0 || num_keys > a.max_context_len) {
    report(a.status, CudaStatusCode::kContextLens, s, 0, p.context_len);
    return false;
  }
  return true;
}

// A sequence on its own: what it is, and whether it is good.
__device__ SequencePlan plan_sequence(const Arguments& a, int64_t s) {
  SequencePlan p{};
  p.query_start = a.query_starts.data == nullptr ? 0 : a.query_starts[s];
  p.num_rows = (a.query_starts.data == nullptr ? static_cast<int32_t>(a.total_tokens)
                                               : a.query_starts[s + 1]) -
               p.query_start;
  p.context_len = a.context_lens[s];
  p.kv_start = a.kv_start.data == nullptr ? 0 : a.kv_start[s];
  p.num_segments = 1;
  if (p.num_rows == 0) return p;
  p.num_tiles = static_cast<int32_t>(ceil_div(int64_t{p.num_rows} * a.group, a.tile_rows));
  p.is_bad = !lengths_are_good(a, s, p);
  if (p.is_bad) return p;
  const KeyRange keys = a.mask.attended(p.geometry(), 0, p.num_rows);
  if (keys.empty()) return p;
  p.first_segment = static_cast<int32_t>(keys.begin / kSegmentKv);
  p.num_segments = static_cast<int32_t>(ceil_div(keys.end, kSegmentKv)) - p.first_segment;
  return p;
}

// Of a sequence whose row tiles are long, how many tiles are split. Blocks take whole tiles in rounds, one each;
// as many rounds as end within kMostOverAverage of the time that all work takes, spread evenly. What is left is
// split, and fills the blocks up: 640 queries @ 8192 keys of 8 KV heads are 160 tasks for 132 blocks.
__device__ int32_t num_split_tiles(const Arguments& a, const SequencePlan& p, int64_t long_before,
                                   int64_t tasks_per_tile, int64_t total_work) {
  const int64_t rounds =
      total_work * kMostOverAverage / (int64_t{100} * a.num_blocks * p.num_segments);
  const int64_t whole = max(rounds * a.num_blocks - long_before, int64_t{0}) / tasks_per_tile;
  return static_cast<int32_t>(max(p.num_tiles - whole, int64_t{0}));
}

// ceil_div in 32 bits, which divide faster.
__device__ int ceil_div_int(int a, int b) { return (a + b - 1) / b; }

// Into how many tasks each of the split tiles goes, so that in some rounds all blocks have one: as few as come to about
// the shortest time, in which beginning and ending a task is like a segment (10 microseconds of 13 on an H200).
__device__ void split_tiles(const Arguments& a, int64_t num_tiles, SequencePlan& p) {
  constexpr int kMostRounds = 4;
  const int most_tiles = kMostRounds * a.num_blocks;  // beyond, there is a task a tile
  const int tiles = num_tiles < most_tiles ? static_cast<int>(num_tiles) : most_tiles;
  int best = std::numeric_limits<int>::max();
#pragma unroll 1
  for (int rounds = 1; rounds <= kMostRounds; ++rounds) {
    const int parts = max(rounds * a.num_blocks / tiles, 1);
    const int segments = min(ceil_div_int(p.num_segments, parts), a.part_segments);
    const int tasks = tiles * ceil_div_int(p.num_segments, segments);
    const int time = ceil_div_int(tasks, a.num_blocks) * (segments + 1);
    if (time >= best) continue;
    best = time;
    p.part_segments = segments;
  }
  p.num_parts = ceil_div_int(p.num_segments, p.part_segments);
}

// (token, query head) pairs of which the first row tiles hold some.
__device__ int64_t rows_of_tiles(const Arguments& a, const SequencePlan& p, int32_t num_tiles) {
  const int64_t tokens = ceil_div(int64_t{num_tiles} * a.tile_rows, a.group);
  return min(tokens, int64_t{p.num_rows}) * a.num_q_heads;
}

__global__ void __launch_bounds__(kMostThreads) schedule(const __grid_constant__ Arguments a) {
  ptx::begin_kernel_behind();
  ptx::wait_for_kernel_before();
  SequencePlan* const sequences = a.workspace.sequences;
  const int64_t tasks_per_tile = int64_t{a.num_kv_heads} * a.num_value_parts;
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
    if (threadIdx.x == 0) *a.workspace.header = {0, 0, 0, 1};
    return;
  }
  int64_t total_segments;
  sum_before(segments, &total_segments);
  const int64_t total_work = total_segments * tasks_per_tile;

  int64_t num_tasks = 0, num_states = 0, num_rows = 0, num_long = 0;
  for (int64_t base = 0; base < a.num_seqs; base += blockDim.x) {
    const int64_t s = base + threadIdx.x;
    const bool is_there = s < a.num_seqs;
    if (a.num_seqs > blockDim.x)
      p = is_there ? sequences[s] : SequencePlan{};  // else it is at hand
    const bool is_long =
        p.num_segments > 1 && p.num_segments * kTasksPerBlock * a.num_blocks > total_work;
    int64_t total;
    const int64_t long_before =
        num_long + sum_before(is_long ? p.num_tiles * tasks_per_tile : 0, &total);
    num_long += total;
    if (is_long) p.num_split = num_split_tiles(a, p, long_before, tasks_per_tile, total_work);
    const int64_t rows = rows_of_tiles(a, p, p.num_split);
    const int64_t first_state = num_states + sum_before(rows * p.num_segments, &total);
    num_states += total;
    p.first_state = first_state;
    if (first_state + rows * p.num_segments > a.workspace.num_states) p.num_split = 0;
    p.first_row = num_rows + sum_before(p.num_split > 0 ? rows : 0, &total);
    num_rows += total;
    if (p.num_split > 0) split_tiles(a, p.num_split * tasks_per_tile, p);
    const int64_t tasks = tasks_per_tile * (p.num_tiles + int64_t{p.num_split} * (p.num_parts - 1));
    p.first_task = num_tasks + sum_before(tasks, &total);
    num_tasks += total;
    if (is_there) sequences[s] = p;
  }
  if (threadIdx.x == 0) {
    // Each block has the task of its number before it asks for more.
    *a.workspace.header = {static_cast<unsigned long long>(a.num_blocks), num_tasks, num_rows, 0};
  }
}

}  // namespace

cudaError_t launch_schedule(const Arguments& a, const Stream& stream) {
  void* arguments[] = {const_cast<Arguments*>(&a)};
  const int64_t threads = std::min(round_up(a.num_seqs, 32), int64_t{kMostThreads});
  return launch(reinterpret_cast<const void*>(&schedule), 1, static_cast<int>(threads), 0,
                arguments, stream);
}

}  // namespace pagefill::cuda
