#include "bench_measure.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "bench_device.h"
#include "bench_inputs.h"

namespace pagefill::cli {
namespace {

constexpr double kDefaultSeconds = 3;
constexpr int kMinRepeats = 5;
constexpr int kMaxRepeats = 50;

int repeats_for(double seconds) {
  return static_cast<int>(
      std::clamp<double>(std::ceil(kDefaultSeconds / seconds), kMinRepeats, kMaxRepeats));
}

}  // namespace

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

namespace {

// Asked before the memory is, because Linux gives more than there is and ends the process later.
Status fits_memory(const BenchShape& shape) {
  const auto memory =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  const double needed = input_bytes(shape);
  if (needed <= memory) return {};
  return Status(
      StatusCode::kResourceExhausted,
      fmt::format("--context: {} tokens of this shape need {:.1f} GiB, this machine has {:.1f} "
                  "GiB",
                  shape.context, needed / 0x1p30, memory / 0x1p30));
}

Result<double> timed_run(const BenchInputs& inputs, const Context& context) {
  const auto start = std::chrono::steady_clock::now();
  const Status status = inputs.operands().run(context);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (!status.ok()) return status;
  return seconds.count();
}

}  // namespace

Result<Measurement> measure(const BenchShape& shape, const Context& context, PeakMeter* meter,
                            std::optional<int> repeats, Progress& progress) {
  if (const Status status = fits_memory(shape); !status.ok()) return status;
  progress.show(fmt::format("{}: inputs", describe(shape)));
  const BenchInputs inputs(shape);
  if (meter == nullptr) return measure_on_device(shape, inputs.operands(), context, repeats);
  const Result<size_t> workspace_size = inputs.operands().workspace_size(context);
  if (!workspace_size.ok()) return workspace_size.status();
  const AlignedMemory workspace(*workspace_size);
  CallReport report;
  Context call = context;
  call.workspace = {workspace.data(), workspace.size()};
  call.report = &report;

  progress.show(fmt::format("{}: warm-up", describe(shape)));
  const Result<double> warm_up = timed_run(inputs, call);
  if (!warm_up.ok()) return warm_up.status();
  const int count = repeats.value_or(repeats_for(*warm_up));

  // The peaks are measured between the runs: a machine whose clock or whose neighbours change over the
  // seconds changes both.
  Measurement result;
  std::vector<double> seconds;
  for (int i = 0; i < count; ++i) {
    progress.show(fmt::format("{}: {} of {}", describe(shape), i + 1, count));
    result.peak_bandwidth = std::max(result.peak_bandwidth, meter->measure_bandwidth());
    result.peak_flops = std::max(result.peak_flops, meter->measure_flops());
    const Result<double> run = timed_run(inputs, call);
    if (!run.ok()) return run.status();
    seconds.push_back(*run);
  }
  progress.clear();
  result.backend = report.backend;
  result.target = report.target;
  result.median_seconds = median(seconds);
  result.best_seconds = *std::min_element(seconds.begin(), seconds.end());
  result.useful_flops = useful_flops(shape);
  result.cache_bytes = visible_cache_bytes(shape);
  return result;
}

}  // namespace pagefill::cli
