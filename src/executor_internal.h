// The threads of a call: how many, and whose.
#pragma once

#include <cstdint>
#include <type_traits>

#include "float_mode.h"
#include "pagefill/executor.h"
#include "pagefill/status.h"

namespace pagefill {

inline constexpr int kMaxThreads = 1024;

// How many threads a call uses: the executor's, or Context::num_threads, or PAGEFILL_NUM_THREADS, or all
// CPUs that the process may use. What is out of range, or asked for twice, is an error.
Result<int> resolve_num_threads(const Context& context);

// How many of num_threads are worth waking to move that many bytes; at least 1.
int threads_for_bytes(int64_t bytes, int num_threads);

// Calls task(argument, i) for i in [0, num_tasks), each on a thread of oneTBB of its own where there are
// that many.
void run_on_tbb(int num_tasks, void (*task)(void* argument, int64_t index), void* argument);

// As run_parallel, for a task that is not inlined.
Status run_on_threads(Executor* executor, int num_threads, int64_t num_tasks,
                      void (*task)(void* argument, int64_t index), void* argument);

// Runs body(index) exactly once for each index in [0, num_tasks), at most num_threads at once, on the
// threads of the executor, or on oneTBB's where it is null. A body does not throw and does not wait for
// another. One thread or one task: runs here, without a word to either.
//
// kInternal or kResourceExhausted where the executor throws or leaves tasks out: what the bodies write is
// then incomplete.
template <typename Body>
Status run_parallel(Executor* executor, int num_threads, int64_t num_tasks, Body&& body) {
  if (num_threads == 1 || num_tasks <= 1) {
    const DefaultFloatMode float_mode;
    for (int64_t index = 0; index < num_tasks; ++index) body(index);
    return {};
  }
  const auto task = [](void* argument, int64_t index) {
    (*static_cast<std::remove_reference_t<Body>*>(argument))(index);
  };
  return run_on_threads(executor, num_threads, num_tasks, task,
                        const_cast<std::remove_cvref_t<Body>*>(&body));
}

template <typename Body>
Status run_parallel(const Context& context, int num_threads, int64_t num_tasks, Body&& body) {
  return run_parallel(context.executor, num_threads, num_tasks, body);
}

}  // namespace pagefill
