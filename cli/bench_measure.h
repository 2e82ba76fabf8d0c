// Times one shape beside the machine's peaks.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bench_shape.h"
#include "pagefill/executor.h"
#include "pagefill/status.h"
#include "peak.h"
#include "terminal.h"

namespace pagefill::cli {

struct Measurement {
  std::string backend;  // as the code that ran names itself
  std::string target;
  double median_seconds = 0;
  double best_seconds = 0;
  double useful_flops = 0;
  double peak_flops = 0;  // a second, of the same threads in the same seconds
  double cache_bytes = 0;
  double peak_bandwidth = 0;

  double share_of_peak() const { return useful_flops / median_seconds / peak_flops; }
  double share_of_bandwidth() const { return cache_bytes / median_seconds / peak_bandwidth; }
};

double median(std::vector<double> values);

// `meter`: of the CPU's peaks; null where the call runs on a device, whose peaks are measured there.
// `repeats`: not given, as many as fit a few seconds, and at least 5.
Result<Measurement> measure(const BenchShape& shape, const Context& context, PeakMeter* meter,
                            std::optional<int> repeats, Progress& progress);

}  // namespace pagefill::cli
