// An executor of plain threads, which ThreadSanitizer understands (it does not see into oneTBB).
#pragma once

#include "pagefill/executor.h"

namespace pagefill::testing {

class ThreadExecutor final : public Executor {
 public:
  explicit ThreadExecutor(int num_threads) : num_threads_(num_threads) {}
  int num_threads() const override { return num_threads_; }
  void parallel_for(int64_t num_tasks, void (*task)(void* argument, int64_t index),
                    void* argument) override;

 private:
  int num_threads_;
};

// Under ThreadSanitizer, and where PAGEFILL_TEST_EXECUTOR is "threads".
bool use_thread_executor();

}  // namespace pagefill::testing
