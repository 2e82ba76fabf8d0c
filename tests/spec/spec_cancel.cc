// A call that is asked to end ends early, says so, and touches nothing but its outputs.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "pagefill/attention.h"
#include "support/run.h"

namespace pagefill::testing {
namespace {

constexpr float kUntouched = -7.0f;

// Two segments of keys for every row, so that a block is looked at in its middle too.
struct LongCall {
  static constexpr int64_t kRows = 32, kKeys = 2048, kHeadDim = 16;
  std::vector<float> query = std::vector<float>(kRows * kHeadDim, 0.5f);
  std::vector<float> cache = std::vector<float>(kKeys * kHeadDim, 0.25f);
  std::vector<float> output = std::vector<float>(kRows * kHeadDim, kUntouched);
  std::vector<int32_t> context_len{kKeys}, page_indices{0};
  std::atomic<int32_t> cancel{0};

  Status run(Context context) {
    context.cancel = &cancel;
    const TensorView keys(cache.data(), {1, 1, kKeys, kHeadDim});
    return prefill_page_attention({query.data(), {kRows, 1, kHeadDim}}, keys, keys, context_len,
                                  page_indices, {},
                                  MutableTensorView(output.data(), {kRows, 1, kHeadDim}), context);
  }
};

// Sets the flag when the work has been shared out, before the first worker starts.
class CancellingExecutor final : public Executor {
 public:
  explicit CancellingExecutor(std::atomic<int32_t>& cancel) : cancel_(cancel) {}
  int num_threads() const override { return 2; }
  void parallel_for(int64_t num_tasks, void (*task)(void* argument, int64_t index),
                    void* argument) override {
    cancel_ = 1;
    for (int64_t i = 0; i < num_tasks; ++i) task(argument, i);
  }

 private:
  std::atomic<int32_t>& cancel_;
};

TEST(Cancel, ACallThatIsCancelledStopsAndSaysSo) {
  for (const Where& where : host_targets()) {
    LongCall call;
    call.cancel = 1;
    CallReport report;
    const Status status = call.run({.backend = where.backend,
                                    .cpu_target = where.target,
                                    .num_threads = 1,
                                    .report = &report});
    EXPECT_EQ(status.code(), StatusCode::kCancelled) << describe(where);
    EXPECT_EQ(status.message().substr(0, 7), "cancel:");
    EXPECT_STREQ(report.backend, "");
    for (float x : call.output) ASSERT_EQ(x, kUntouched) << describe(where);

    call.cancel = 0;
    ASSERT_TRUE(call.run({.backend = where.backend, .cpu_target = where.target}).ok());
    for (float x : call.output) ASSERT_EQ(x, 0.25f) << describe(where);
  }
}

TEST(Cancel, WorkersLookAtTheFlagBetweenTasks) {
  LongCall call;
  CancellingExecutor executor(call.cancel);
  const Status status = call.run({.backend = "cpu", .executor = &executor});
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  for (float x : call.output) ASSERT_EQ(x, kUntouched);
}

TEST(Cancel, BadArgumentsAreSaidFirst) {
  LongCall call;
  call.cancel = 1;
  call.page_indices = {9};
  EXPECT_EQ(call.run({}).code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace pagefill::testing
