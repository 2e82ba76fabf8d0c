// append_kv, copy_pages and merge_attention_states on several threads, pagefill's own and the caller's.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "append_case.h"
#include "pagefill/attention.h"
#include "support/thread_executor.h"

namespace pagefill::testing {
namespace {

// pagefill's own threads (more of them than there are CPUs, too), and the caller's.
template <typename Call>
void on_all_threads(const Call& call) {
  for (int num_threads : {1, 2, 3, 8}) {
    SCOPED_TRACE(num_threads);
    call(Context{.num_threads = num_threads});
    ThreadExecutor executor(num_threads);
    call(Context{.executor = &executor});
  }
}

// Worth four threads and more.
AppendGeometry many_tokens(DType tokens, CacheOrder order) {
  return {.sequences = {{300, 300}, {1, 1000}, {200, 555, 100}, {11, 11}},
          .num_kv_heads = 3,
          .head_dim = 128,
          .v_head_dim = 64,
          .page_size = 16,
          .tokens_dtype = tokens,
          .cache_order = order};
}

TEST(SeveralThreads, WriteEveryTokenOnce) {
  for (CacheOrder order : {CacheOrder::kHeadMajor, CacheOrder::kInterleavedSlots}) {
    on_all_threads([&](const Context& context) {
      const AppendCase append(many_tokens(DType::kBFloat16, order));
      const Status status = append.call(context);
      ASSERT_TRUE(status.ok()) << status.message();
      append.expect_written();
    });
  }
}

TEST(SeveralThreads, CopyPagesInTheirOrder) {
  constexpr int64_t kHeads = 3, kPages = 8, kSlots = 32, kDim = 256;
  const std::vector<PageCopy> copies = {{0, 1, 32}, {1, 2, 32}, {2, 3, 20}, {7, 1, 32}, {1, 4, 31}};
  std::vector<float> numbers(2 * kHeads * kPages * kSlots * kDim);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i);
  const auto copied = [&](const Context& context) {
    std::vector<float> memory = numbers;
    const MutableTensorView keys(memory.data(), {kHeads, kPages, kSlots, kDim});
    const MutableTensorView values(memory.data() + memory.size() / 2,
                                   {kHeads, kPages, kSlots, kDim});
    const Status status = copy_pages(copies, keys, values, {}, context);
    EXPECT_TRUE(status.ok()) << status.message();
    return memory;
  };
  const std::vector<float> expected = copied({.num_threads = 1});
  on_all_threads([&](const Context& context) { EXPECT_TRUE(copied(context) == expected); });
}

TEST(SeveralThreads, MergeEveryRowOnce) {
  constexpr int64_t kTokens = 100, kHeads = 7, kDim = 128, kRows = kTokens * kHeads;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> outputs(2 * kRows * kDim), lses(2 * kRows);
  for (float& x : outputs) x = normal(random);
  for (float& x : lses) x = normal(random);
  const auto merged = [&](const Context& context) {
    std::vector<float> output(outputs), lse(lses);
    const auto output_view = [&](int64_t row) {
      return MutableTensorView(output.data() + row * kDim, {kTokens, kHeads, kDim});
    };
    const auto lse_view = [&](int64_t row) {
      return MutableTensorView(lse.data() + row, {kTokens, kHeads});
    };
    // In place: a row that was merged twice would differ.
    const Status status =
        merge_attention_states(output_view(0), lse_view(0), output_view(kRows), lse_view(kRows),
                               {output_view(0), lse_view(0)}, context);
    EXPECT_TRUE(status.ok()) << status.message();
    output.insert(output.end(), lse.begin(), lse.end());
    return output;
  };
  const std::vector<float> expected = merged({.num_threads = 1});
  on_all_threads([&](const Context& context) { EXPECT_TRUE(merged(context) == expected); });
}

TEST(SeveralThreads, MayCallAtTheSameTime) {
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([] {
      const AppendCase append(many_tokens(DType::kFloat32, CacheOrder::kTokenMajor));
      const Status status = append.call({.num_threads = 3});
      EXPECT_TRUE(status.ok()) << status.message();
      append.expect_written();
    });
  }
  for (std::thread& caller : callers) caller.join();
}

}  // namespace
}  // namespace pagefill::testing
