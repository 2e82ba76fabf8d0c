// What ThreadSanitizer watches: the few calls in which threads meet. Small, so that it stays fast
// there.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "pagefill/attention.h"
#include "support/oracle.h"
#include "support/run.h"
#include "support/tolerance.h"

namespace pagefill::testing {
namespace {

Where on(const Where& where, int threads) { return {where.backend, where.target, threads}; }

TEST(Threads, ShareTheRowsOfAPrompt) {
  const Problem problem = random_problem({.sequences = {{50, 90}, {40, 70}}, .head_dim = 16});
  for (const Where& where : cpu_targets()) {
    const Results one = run(problem, {}, where);
    expect_close(one, oracle(problem), problem);
    for (int threads : {2, 3, 8}) {
      EXPECT_EQ(difference(one, run(problem, {}, on(where, threads))), std::nullopt);
    }
  }
}

TEST(Threads, ShareTheSegmentsOfADecodeRow) {
  const Problem problem = random_problem({.sequences = {{1, 5000}, {1, 2049}, {3, 1030}},
                                          .num_q_heads = 2,
                                          .num_kv_heads = 1,
                                          .head_dim = 8});
  for (const Where& where : cpu_targets()) {
    const Results one = run(problem, {}, where);
    expect_close(one, oracle(problem), problem);
    for (int threads : {2, 3, 8}) {
      for (int repetition = 0; repetition < 3; ++repetition) {
        EXPECT_EQ(difference(one, run(problem, {}, on(where, threads))), std::nullopt);
      }
    }
  }
}

TEST(Threads, MayCallAtTheSameTime) {
  const Problem problem = random_problem({.sequences = {{20, 90}, {1, 1500}}, .head_dim = 8});
  const Results expected = run(problem, {}, {"cpu", "auto", 1});
  std::vector<Results> results(4);
  std::vector<std::thread> callers;
  for (Results& result : results) {
    callers.emplace_back([&] { result = run(problem, {}, {"cpu", "auto", 2}); });
  }
  for (std::thread& caller : callers) caller.join();
  for (const Results& result : results) EXPECT_EQ(difference(expected, result), std::nullopt);
}

TEST(Threads, MayCancelACallOfAnother) {
  std::vector<float> query(64 * 8, 0.5f), cache(2048 * 8, 0.25f), output(64 * 8);
  const std::vector<int32_t> context_len{2048}, page_indices{0};
  const TensorView keys(cache.data(), {1, 1, 2048, 8});
  std::atomic<int32_t> cancel = 0;
  Status status;
  std::thread caller([&] {
    status = prefill_page_attention({query.data(), {64, 1, 8}}, keys, keys, context_len,
                                    page_indices, {}, MutableTensorView(output.data(), {64, 1, 8}),
                                    {.backend = "cpu", .num_threads = 2, .cancel = &cancel});
  });
  cancel = 1;
  caller.join();
  EXPECT_TRUE(status.ok() || status.code() == StatusCode::kCancelled) << status.message();
}

}  // namespace
}  // namespace pagefill::testing
