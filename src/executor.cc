#include "executor_internal.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <exception>
#include <new>
#include <string_view>
#include <thread>

#include "checks.h"

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace pagefill {
namespace {

constexpr const char* kVariable = "PAGEFILL_NUM_THREADS";

int count_cpus() {
  cpu_set_t cpus;  // of this process: a container or taskset may give it fewer than there are
  const int count = sched_getaffinity(0, sizeof cpus, &cpus) == 0
                        ? CPU_COUNT(&cpus)
                        : static_cast<int>(std::thread::hardware_concurrency());
  return std::clamp(count, 1, kMaxThreads);
}

Result<int> parse_num_threads(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1 ||
      value > kMaxThreads) {
    return invalid_argument(fmt::format("{}: expected an integer from 1 to {}, got \"{}\"",
                                        kVariable, kMaxThreads, text));
  }
  return value;
}

// What the threads of one run share. They take the next task until none is left, so that a thread that
// comes late costs nothing.
struct Run {
  void (*task)(void* argument, int64_t index);
  void* argument;
  int64_t num_tasks;
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> done{0};
};

// ThreadSanitizer cannot see how threads hand over work inside a library that was built without it.
void hand_over([[maybe_unused]] Run& run) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(&run);
#endif
}
void take_over([[maybe_unused]] Run& run) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&run);
#endif
}

void work(void* argument, int64_t /*worker*/) {
  Run& run = *static_cast<Run*>(argument);
  take_over(run);
  const DefaultFloatMode float_mode;
  for (int64_t index; (index = run.next.fetch_add(1, std::memory_order_relaxed)) < run.num_tasks;) {
    run.task(run.argument, index);
    run.done.fetch_add(1, std::memory_order_release);
  }
  hand_over(run);
}

}  // namespace

Executor::~Executor() = default;

Result<int> resolve_num_threads(const Context& context) {
  if (context.num_threads < 0 || context.num_threads > kMaxThreads) {
    return invalid_argument(fmt::format("num_threads: expected 0 (all) to {}, got {}", kMaxThreads,
                                        context.num_threads));
  }
  if (context.executor != nullptr) {
    if (context.num_threads != 0) {
      return invalid_argument(fmt::format(
          "num_threads: expected 0 together with an executor, got {}", context.num_threads));
    }
    const int num_threads = context.executor->num_threads();
    if (num_threads < 1) {
      return invalid_argument(
          fmt::format("executor: expected num_threads() of at least 1, got {}", num_threads));
    }
    return std::min(num_threads, kMaxThreads);
  }
  if (context.num_threads != 0) return context.num_threads;
  if (const char* text = std::getenv(kVariable)) return parse_num_threads(text);
  static const int num_cpus = count_cpus();  // once: a system call would show in a decode step
  return num_cpus;
}

int threads_for_bytes(int64_t bytes, int num_threads) {
  // Waking a thread takes 10 to 20 us; moving this many bytes takes one thread about 25 us.
  constexpr int64_t kBytesPerThread = 256 * 1024;
  return static_cast<int>(std::clamp<int64_t>(bytes / kBytesPerThread, 1, num_threads));
}

Status run_on_threads(Executor* executor, int num_threads, int64_t num_tasks,
                      void (*task)(void* argument, int64_t index), void* argument) try {
  Run run{task, argument, num_tasks};
  const int num_workers = static_cast<int>(std::min<int64_t>(num_threads, num_tasks));
  hand_over(run);
  if (executor != nullptr) {
    executor->parallel_for(num_workers, work, &run);
  } else {
    run_on_tbb(num_workers, work, &run);
  }
  take_over(run);
  const int64_t done = run.done.load(std::memory_order_acquire);
  if (done == num_tasks) return {};
  return Status(StatusCode::kInternal,
                fmt::format("executor: expected parallel_for to return when {} tasks are done, got "
                            "back after {}",
                            num_tasks, done));
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kResourceExhausted, "executor: out of memory");
} catch (const std::exception& exception) {
  return Status(StatusCode::kInternal,
                fmt::format("executor: expected no exception, got \"{}\"", exception.what()));
} catch (...) {
  return Status(StatusCode::kInternal, "executor: expected no exception, got one of unknown type");
}

}  // namespace pagefill
