// Whose threads a call uses, and how many.
#include "pagefill/executor.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <cstdlib>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>

#include "append_case.h"
#include "pagefill/backend.h"

namespace pagefill::testing {
namespace {

constexpr const char* kVariable = "PAGEFILL_NUM_THREADS";

// Restores the variable when it goes.
class Variable {
 public:
  Variable() {
    const char* value = std::getenv(kVariable);
    had_value_ = value != nullptr;
    if (had_value_) old_ = value;
    unsetenv(kVariable);
  }
  ~Variable() {
    if (had_value_) {
      setenv(kVariable, old_.c_str(), 1);
    } else {
      unsetenv(kVariable);
    }
  }
  void set(const char* value) { setenv(kVariable, value, 1); }

 private:
  bool had_value_ = false;
  std::string old_;
};

// Runs tasks here, one after another, and keeps what was asked of it.
class CountingExecutor : public Executor {
 public:
  explicit CountingExecutor(int num_threads) : num_threads_(num_threads) {}
  int num_threads() const override { return num_threads_; }
  void parallel_for(int64_t num_tasks, void (*task)(void*, int64_t), void* argument) override {
    ++calls;
    most_tasks = std::max(most_tasks, num_tasks);
    for (int64_t i = 0; i < num_tasks; ++i) task(argument, i);
  }
  int calls = 0;
  int64_t most_tasks = 0;

 private:
  int num_threads_;
};

struct ThrowingExecutor final : CountingExecutor {
  using CountingExecutor::CountingExecutor;
  void parallel_for(int64_t, void (*)(void*, int64_t), void*) override {
    throw std::runtime_error("no more threads");
  }
};

struct ForgetfulExecutor final : CountingExecutor {
  using CountingExecutor::CountingExecutor;
  void parallel_for(int64_t, void (*)(void*, int64_t), void*) override {}
};

// 2 MiB in the cache: worth eight threads.
AppendGeometry worth_threads() {
  return {.sequences = {{512, 512}},
          .num_kv_heads = 4,
          .head_dim = 128,
          .v_head_dim = 128,
          .page_size = 16};
}

TEST(Threads, AreThoseOfTheProcessByDefault) {
  const Variable variable;
  cpu_set_t cpus;
  ASSERT_EQ(sched_getaffinity(0, sizeof cpus, &cpus), 0);
  EXPECT_EQ(choose_backend().value().num_threads, CPU_COUNT(&cpus));
}

TEST(Threads, FollowTheVariableAndBeforeItTheCall) {
  Variable variable;
  for (const char* value : {"1", "3", "1024"}) {
    variable.set(value);
    EXPECT_EQ(choose_backend().value().num_threads, std::stoi(value));
  }
  EXPECT_EQ(choose_backend({.num_threads = 5}).value().num_threads, 5);
  CountingExecutor executor(7);
  EXPECT_EQ(choose_backend({.executor = &executor}).value().num_threads, 7);
}

TEST(Threads, InTheVariableAreANumberFrom1To1024) {
  Variable variable;
  for (const char* value : {"", "0", "-1", "1025", "99999999999", "two", "2x", " 2", "2 ", "+2",
                            "2.0", "0x2", "auto"}) {
    variable.set(value);
    EXPECT_EQ(choose_backend().status().message(),
              "PAGEFILL_NUM_THREADS: expected an integer from 1 to 1024, got \"" +
                  std::string(value) + "\"");
  }
}

TEST(Threads, OutOfRangeOrAskedForTwiceAreErrors) {
  EXPECT_EQ(choose_backend({.num_threads = -1}).status().message(),
            "num_threads: expected 0 (all) to 1024, got -1");
  EXPECT_EQ(choose_backend({.num_threads = 1025}).status().message(),
            "num_threads: expected 0 (all) to 1024, got 1025");
  CountingExecutor two(2), none(0);
  EXPECT_EQ(choose_backend({.executor = &two, .num_threads = 2}).status().message(),
            "num_threads: expected 0 together with an executor, got 2");
  EXPECT_EQ(choose_backend({.executor = &none}).status().message(),
            "executor: expected num_threads() of at least 1, got 0");
}

TEST(Executor, IsAskedForNoMoreTasksThanItHasThreads) {
  for (int num_threads : {2, 3, 5}) {
    const AppendCase append(worth_threads());
    CountingExecutor executor(num_threads);
    ASSERT_TRUE(append.call({.executor = &executor}).ok());
    append.expect_written();
    EXPECT_EQ(executor.calls, 1);
    EXPECT_GT(executor.most_tasks, 1);
    EXPECT_LE(executor.most_tasks, num_threads);
  }
}

TEST(Executor, IsNotBotheredWithLittleWork) {
  const AppendCase append({});
  CountingExecutor executor(8);
  ASSERT_TRUE(append.call({.executor = &executor}).ok());
  append.expect_written();
  EXPECT_EQ(executor.calls, 0);
}

TEST(Executor, ThatThrowsIsAnError) {
  const AppendCase append(worth_threads());
  ThrowingExecutor executor(4);
  const Status status = append.call({.executor = &executor});
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_EQ(status.message(), "executor: expected no exception, got \"no more threads\"");
}

TEST(Executor, ThatLeavesTasksOutIsAnError) {
  const AppendCase append(worth_threads());
  ForgetfulExecutor executor(4);
  const Status status = append.call({.executor = &executor});
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_EQ(status.message(),
            "executor: expected parallel_for to return when 4 tasks are done, got back after 0");
}

}  // namespace
}  // namespace pagefill::testing
