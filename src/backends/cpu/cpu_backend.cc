#include "backends/cpu/cpu_backend.h"

#include <atomic>

#include "backends/cpu/kernel.h"
#include "backends/cpu/schedule.h"
#include "executor_internal.h"

namespace pagefill {
namespace {

class CpuBackend final : public Backend {
 public:
  const char* name() const override { return "cpu"; }
  const char* description() const override {
    return "float32 vector units, compiled for several instruction sets";
  }
  std::span<const TargetInfo> targets() const override { return cpu::kernel_targets(); }

  Result<size_t> workspace_size(const Problem& problem,
                                const RunSettings& settings) const override {
    return cpu::schedule_size(problem, cpu::find_kernel(settings.target), settings.num_threads);
  }

  Status run(const Problem& problem, const RunSettings& settings,
             CallReport* report) const override {
    const cpu::Kernel& kernel = cpu::find_kernel(settings.target);
    const cpu::Schedule schedule =
        cpu::make_schedule(problem, kernel, settings.num_threads, settings.workspace);
    std::atomic<int64_t> next_task = 0;
    report->target = kernel.target;
    report->num_threads = schedule.num_workers;
    const int workers = schedule.num_workers;
    return run_parallel(settings.executor, workers, workers, [&](int64_t worker) {
      cpu::work(problem, kernel, schedule, static_cast<int>(worker), next_task,
                settings.cancellation);
    });
  }
};

}  // namespace

const Backend* cpu_backend() {
  static const CpuBackend backend;
  return &backend;
}

}  // namespace pagefill
