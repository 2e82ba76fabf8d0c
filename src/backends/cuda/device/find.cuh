// Which sequence an index belongs to, by a whole warp, and what is reported about one.
#pragma once

#include "backends/cuda/arguments.h"
#include "pagefill/executor.h"

namespace pagefill::cuda {

// The last sequence whose `first` is at most `index`. 32 sequences a step, so that 1024 of them take two
// reads one after another.
__device__ inline int64_t find_sequence(const SequencePlan* sequences, int64_t num_seqs,
                                        int64_t SequencePlan::*first, int64_t index) {
  const int lane = threadIdx.x % 32;
  int64_t begin = 0, count = num_seqs;
  while (count > 1) {
    const int64_t step = (count + 31) / 32;
    const int64_t at = begin + lane * step;
    const bool is_before = at < begin + count && sequences[at].*first <= index;
    const int64_t steps = __popc(__ballot_sync(~0u, is_before)) - 1;
    count = min(step, count - steps * step);
    begin += steps * step;
  }
  return begin;
}

// Keeps the first report of all calls that share the buffer.
__device__ inline void report(int32_t* status, CudaStatusCode code, int64_t sequence, int64_t entry,
                              int32_t value) {
  if (status == nullptr || atomicCAS(status, 0, static_cast<int32_t>(code)) != 0) return;
  status[1] = static_cast<int32_t>(sequence);
  status[2] = static_cast<int32_t>(entry);
  status[3] = value;
}

}  // namespace pagefill::cuda
