// pagefill's own threads. The build leaves ThreadSanitizer out of this file: oneTBB's headers share memory
// in ways that are ordered inside its library, which is not instrumented.
#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>

#include <optional>

#include "executor_internal.h"

namespace pagefill {

void run_on_tbb(int num_tasks, void (*task)(void* argument, int64_t index), void* argument) {
  // By itself oneTBB starts no more threads than there are CPUs.
  std::optional<tbb::global_control> more_threads;
  constexpr auto kLimit = tbb::global_control::max_allowed_parallelism;
  if (static_cast<size_t>(num_tasks) > tbb::global_control::active_value(kLimit)) {
    more_threads.emplace(kLimit, static_cast<size_t>(num_tasks));
  }
  // An arena of its own: a caller who is a task of oneTBB gets no other task to run while it waits here.
  tbb::task_arena arena(num_tasks);
  arena.execute([&] {
    tbb::parallel_for(
        tbb::blocked_range<int>(0, num_tasks, 1),
        [&](const tbb::blocked_range<int>& range) { task(argument, range.begin()); },
        tbb::simple_partitioner());
  });
}

}  // namespace pagefill
