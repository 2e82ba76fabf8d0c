// Which blocks of rows there are, which worker takes what, and whose memory is where.
#pragma once

#include <atomic>
#include <cstddef>
#include <span>

#include "backends/cpu/kernel.h"
#include "cancellation.h"
#include "problem.h"

namespace pagefill::cpu {

// What one worker does in one go: all of a block, or one segment of it.
struct Task {
  Block block;
  KeyRange keys;         // of the block, or of the segment
  int32_t segment = -1;  // -1: the whole block
  int32_t num_segments = 1;
  int64_t first_state = 0;  // of the block's segments in Schedule::states
  int64_t work = 0;         // rows x keys
};

// The plan of one call, in the caller's workspace.
struct Schedule {
  int num_workers = 0;
  std::span<Task> tasks;                          // heaviest first
  std::span<Scratch> scratch;                     // one a worker
  std::span<State> states;                        // of the segments of split blocks
  std::span<std::atomic<int32_t>> segments_left;  // of the block that begins at that state
};

// Bytes that make_schedule takes: exactly as many.
size_t schedule_size(const Problem& problem, const Kernel& kernel, int num_threads);

Schedule make_schedule(const Problem& problem, const Kernel& kernel, int num_threads,
                       std::span<std::byte> workspace);

// Takes tasks until none is left, or the call is to end. Called once for each worker.
void work(const Problem& problem, const Kernel& kernel, const Schedule& schedule, int worker,
          std::atomic<int64_t>& next_task, const Cancellation& cancellation);

}  // namespace pagefill::cpu
