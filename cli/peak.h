// What this machine can do at best, measured beside the work: the yardsticks of `pagefill bench`.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>

#include "peak_kernels.h"

namespace pagefill::cli {

// Rates that `num_threads` threads reach at once with one instruction set. Other work on the machine, and
// a clock that has not risen yet, only ever take away: the best of several measurements counts.
class PeakMeter {
 public:
  PeakMeter(const PeakKernels& kernels, int num_threads);

  // float32 operations a second; a few milliseconds for each shape of the multiply-add loop.
  double measure_flops() const;
  // Bytes read a second, from a buffer that no cache holds; nothing else is in the caches afterwards. The
  // first call allocates it, and throws std::bad_alloc when there is no such memory.
  double measure_bandwidth();

 private:
  void allocate_buffer();

  const PeakKernels& kernels_;
  int num_threads_;
  size_t floats_per_thread_;
  std::unique_ptr<float[]> buffer_;
};

}  // namespace pagefill::cli
