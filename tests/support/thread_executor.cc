#include "support/thread_executor.h"

#include <atomic>
#include <cstdlib>
#include <string_view>
#include <thread>
#include <vector>

namespace pagefill::testing {

void ThreadExecutor::parallel_for(int64_t num_tasks, void (*task)(void* argument, int64_t index),
                                  void* argument) {
  std::atomic<int64_t> next = 0;
  const auto work = [&] {
    for (int64_t i = next++; i < num_tasks; i = next++) task(argument, i);
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < num_threads_; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
}

bool use_thread_executor() {
#if defined(__SANITIZE_THREAD__)
  return true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
  return true;
#endif
#endif
  const char* executor = std::getenv("PAGEFILL_TEST_EXECUTOR");
  return executor != nullptr && std::string_view(executor) == "threads";
}

}  // namespace pagefill::testing
