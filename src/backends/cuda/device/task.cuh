// A task: a row tile of one KV head of one sequence against all of its keys, or some segments of them.
#pragma once

#include "backends/cuda/config.h"
#include "backends/cuda/device/find.cuh"
#include "backends/cuda/device/state.cuh"

namespace pagefill::cuda {

// Absolute positions of keys: 2^31 - 1 at most. Unsigned, as tiles are looked up ahead, for keys of up to 64 tiles
// behind the last one.
struct KeyInterval {
  uint32_t begin, end;
  __device__ bool contains(uint32_t key) const { return key >= begin && key < end; }
  __device__ bool contains(KeyInterval other) const {
    return other.begin >= begin && other.end <= end;
  }
};

__device__ __forceinline__ KeyInterval interval(KeyRange32 range) {
  return {static_cast<uint32_t>(range.begin), static_cast<uint32_t>(range.end)};
}

// What a block has in hand. In shared memory: few ask, and registers are short.
struct Task {
  const SequencePlan* plan;
  int64_t sequence;
  int64_t first_row;  // of the sequence's packed rows: token * group + head of the group
  SequenceGeometry32 geometry;
  int32_t first_token;  // the first row's, of the sequence's
  int first_head;       // and its head of the group
  int32_t num_rows;
  int32_t kv_start;
  int kv_head;
  int value_part;
  int segment;  // the first one, absolute; or -1: all
  int num_segments;
  bool all_are_bad;  // of the task without a plan: query_starts makes no sense
  // Keys that some row takes, and those that all rows take, and see.
  KeyInterval any, all_attended, all_visible;
};

// Which keys a row takes; in shared memory, as only tiles at an edge ask.
struct RowKeys {
  KeyInterval attended;  // what takes part
  KeyInterval visible;   // what causality and window show; elsewhere mask_value is added
};

// Which keys the rows of a task take.
__device__ __forceinline__ void find_keys(const Arguments& a, Task& task) {
  const auto& seq = task.geometry;
  const int32_t first = task.first_token;
  const int32_t last = first + a.group_divisor.quotient(task.first_head + task.num_rows - 1);
  KeyRange32 any = a.row_mask.attended(seq, first, last + 1);
  if (task.segment >= 0) {
    const int64_t begin = int64_t{task.segment} * kSegmentKv;
    any.begin = static_cast<int32_t>(max(int64_t{any.begin}, begin));
    any.end = static_cast<int32_t>(
        min(int64_t{any.end}, begin + int64_t{task.num_segments} * kSegmentKv));
  }
  task.any = interval(any.empty() ? KeyRange32{} : any);
  const int32_t positions[2] = {seq.position(first), seq.position(last)};
  task.all_attended = interval(
      intersect(a.row_mask.attended(seq, positions[0]), a.row_mask.attended(seq, positions[1])));
  task.all_visible = interval(
      intersect(a.row_mask.visible(seq, positions[0]), a.row_mask.visible(seq, positions[1])));
}

__device__ __forceinline__ Task find_task(const Arguments& a, const SequencePlan* sequences,
                                          int64_t index) {
  Task task{};
  task.sequence = find_sequence(sequences, a.num_seqs, &SequencePlan::first_task, index);
  const SequencePlan& p = sequences[task.sequence];
  task.plan = &p;
  int64_t rest = index - p.first_task;
  int64_t quotient = a.value_part_divisor.take_quotient(rest);
  task.value_part = static_cast<int>(rest);
  rest = quotient;
  quotient = a.kv_head_divisor.take_quotient(rest);
  task.kv_head = static_cast<int>(rest);
  // The last rows see most keys: they come first, and what is split comes last, to fill up all blocks.
  const int num_whole = p.num_tiles - p.num_split;
  int64_t tile = p.num_tiles - 1 - quotient;
  task.segment = -1;
  if (quotient >= num_whole) {
    rest = quotient - num_whole;
    const int before = static_cast<int>(rest % p.num_parts) * p.part_segments;
    task.segment = p.first_segment + before;
    task.num_segments = min(p.part_segments, p.num_segments - before);
    tile = p.num_split - 1 - rest / p.num_parts;
  }
  task.geometry = p.geometry<int32_t>();
  task.first_row = tile * a.tile_rows;
  rest = task.first_row;
  task.first_token = static_cast<int32_t>(a.group_divisor.take_quotient(rest));
  task.first_head = static_cast<int>(rest);
  task.num_rows =
      static_cast<int>(min(int64_t{a.tile_rows}, int64_t{p.num_rows} * a.group - task.first_row));
  task.kv_start = p.kv_start;
  if (!p.is_bad) find_keys(a, task);
  return task;
}

// Row `row` of a task's.
struct TaskRow {
  int32_t token;  // of the sequence
  int q_head;
};

__device__ __forceinline__ TaskRow row_of(const Arguments& a, const Task& task, int row) {
  const int packed = task.first_head + row, token = a.group_divisor.quotient(packed);
  return {task.first_token + token, task.kv_head * a.group + packed - token * a.group};
}

// Its keys. A row that is not there does as the last one.
__device__ __forceinline__ RowKeys keys_of_row(const Arguments& a, const Task& task, int row) {
  const auto& seq = task.geometry;
  const int32_t position = seq.position(row_of(a, task, min(row, task.num_rows - 1)).token);
  return {interval(a.row_mask.attended(seq, position)),
          interval(a.row_mask.visible(seq, position))};
}

// A task of a sequence that is bad: its rows, and all of the group's of the tokens that they begin and end in.
__device__ inline void write_nan(const Arguments& a, const Task& task, int64_t thread,
                                 int64_t step) {
  const int num_tokens = a.group_divisor.quotient(task.first_head + task.num_rows - 1) + 1;
  write_nan(a, int64_t{task.geometry.query_start} + task.first_token, num_tokens,
            task.kv_head * a.group, a.group, thread, step);
}

// Where a row's partial state of one of the task's segments goes; -1 where it sees none of its keys.
__device__ __forceinline__ int64_t partial_state(const Arguments& a, const Task& task, int segment,
                                                 const TaskRow& row) {
  const SequencePlan& p = *task.plan;
  const auto& seq = task.geometry;
  const auto keys = a.row_mask.attended(seq, seq.position(row.token));
  const int32_t segment_begin = segment * kSegmentKv;
  if (keys.empty() || keys.begin - segment_begin >= kSegmentKv || keys.end <= segment_begin) {
    return -1;
  }
  return p.first_state + (int64_t{row.token} * a.num_q_heads + row.q_head) * p.num_segments +
         segment - p.first_segment;
}

}  // namespace pagefill::cuda
