// What there is to do for a sequence: its row tiles, which of them are split, and where its tasks and states are.
#pragma once

#include <limits>

#include "backends/cuda/config.h"
#include "backends/cuda/device/find.cuh"

namespace pagefill::cuda {

__device__ inline bool starts_are_good(const Arguments& a, int64_t s) {
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

__device__ inline bool lengths_are_good(const Arguments& a, int64_t s, const SequencePlan& p) {
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
__device__ inline SequencePlan plan_sequence(const Arguments& a, int64_t s) {
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
__device__ inline int32_t num_split_tiles(const Arguments& a, const SequencePlan& p,
                                          int64_t long_before, int64_t tasks_per_tile,
                                          int64_t total_work) {
  const int64_t rounds =
      total_work * kMostOverAverage / (int64_t{100} * a.num_blocks * p.num_segments);
  const int64_t whole = max(rounds * a.num_blocks - long_before, int64_t{0}) / tasks_per_tile;
  return static_cast<int32_t>(max(p.num_tiles - whole, int64_t{0}));
}

// ceil_div in 32 bits, which divide faster.
__device__ inline int ceil_div_int(int a, int b) { return (a + b - 1) / b; }

// Into how many tasks each of the split tiles goes, so that in some rounds all blocks have one: as few as come to about
// the shortest time, in which beginning and ending a task is like a segment (10 microseconds of 13 on an H200).
__device__ inline void split_tiles(const Arguments& a, int64_t num_tiles, SequencePlan& p) {
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
__device__ inline int64_t rows_of_tiles(const Arguments& a, const SequencePlan& p,
                                        int32_t num_tiles) {
  const int64_t tokens = ceil_div(int64_t{num_tiles} * a.tile_rows, a.group);
  return min(tokens, int64_t{p.num_rows}) * a.num_q_heads;
}

// What the sequences before one have.
struct Placed {
  int64_t num_tasks = 0, num_states = 0, num_rows = 0, num_long = 0;
};

// Splits the tiles of a sequence, and finds its places behind those of the sequences before. total_segments: of all row
// tiles. sum_before(value, &total): the sum of `value` over the sequences before this one of those that are placed
// together, and over all of them.
template <typename SumBefore>
__device__ __forceinline__ void place_sequence(const Arguments& a, int64_t total_segments,
                                               const SumBefore& sum_before, Placed& placed,
                                               SequencePlan& p) {
  const int64_t tasks_per_tile = int64_t{a.num_kv_heads} * a.num_value_parts;
  const int64_t total_work = total_segments * tasks_per_tile;
  const auto take_place = [&](int64_t& placed_before, int64_t count) {
    int64_t total;
    const int64_t place = placed_before + sum_before(count, &total);
    placed_before += total;
    return place;
  };
  const bool is_long =
      p.num_segments > 1 && p.num_segments * kTasksPerBlock * a.num_blocks > total_work;
  const int64_t long_before =
      take_place(placed.num_long, is_long ? p.num_tiles * tasks_per_tile : 0);
  if (is_long) p.num_split = num_split_tiles(a, p, long_before, tasks_per_tile, total_work);
  const int64_t rows = rows_of_tiles(a, p, p.num_split);
  p.first_state = take_place(placed.num_states, rows * p.num_segments);
  if (p.first_state + rows * p.num_segments > a.workspace.num_states) p.num_split = 0;
  p.first_row = take_place(placed.num_rows, p.num_split > 0 ? rows : 0);
  if (p.num_split > 0) split_tiles(a, p.num_split * tasks_per_tile, p);
  p.first_task = take_place(
      placed.num_tasks, tasks_per_tile * (p.num_tiles + int64_t{p.num_split} * (p.num_parts - 1)));
}

// Each block has the task of its number before it asks for more.
__device__ inline ScheduleHeader header_of(const Arguments& a, const Placed& placed) {
  return {static_cast<unsigned long long>(a.num_blocks), placed.num_tasks, placed.num_rows, 0};
}
// query_starts makes no sense.
__device__ inline ScheduleHeader bad_header() { return {0, 0, 0, 1}; }

// A batch of one sequence, by any number of threads that all do the same.
__device__ inline ScheduleHeader schedule_one_sequence(const Arguments& a, SequencePlan& p) {
  if (!starts_are_good(a, 0)) return bad_header();
  p = plan_sequence(a, 0);
  Placed placed;
  const auto none_before = [](int64_t value, int64_t* total) {
    *total = value;
    return int64_t{0};
  };
  place_sequence(a, int64_t{p.num_tiles} * p.num_segments, none_before, placed, p);
  return header_of(a, placed);
}

}  // namespace pagefill::cuda
