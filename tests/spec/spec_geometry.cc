// Promise 4: any geometry.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/oracle.h"
#include "support/run.h"
#include "support/tolerance.h"

namespace pagefill::testing {
namespace {

void expect_right_on_all_targets(const Problem& problem, const Layout& layout = {}) {
  const Expected expected = oracle(problem);
  for (const Where& where : all_targets()) {
    SCOPED_TRACE(describe(where) + ", " + describe(layout));
    expect_close(run(problem, layout, where), expected, problem);
  }
}

TEST(Geometry, EveryHeadDim) {
  for (int64_t head_dim = 8; head_dim <= 512; head_dim += 8) {
    expect_right_on_all_targets(random_problem({.sequences = {{5, 70}, {1, 66}},
                                                .num_q_heads = 2,
                                                .num_kv_heads = 1,
                                                .head_dim = head_dim}));
  }
}

TEST(Geometry, EveryValueHeadDimBesideEveryHeadDim) {
  for (int64_t dim = 8; dim <= 512; dim += 8) {
    for (int64_t other : {int64_t{8}, 520 - dim}) {
      expect_right_on_all_targets(random_problem({.sequences = {{3, 67}},
                                                  .num_q_heads = 2,
                                                  .num_kv_heads = 1,
                                                  .head_dim = other,
                                                  .v_head_dim = dim}));
    }
  }
}

TEST(Geometry, EveryRatioOfHeads) {
  for (int64_t kv_heads : {1, 2, 3}) {
    for (int64_t ratio : {1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 25, 32}) {
      expect_right_on_all_targets(random_problem({.sequences = {{9, 80}, {1, 70}},
                                                  .num_q_heads = kv_heads * ratio,
                                                  .num_kv_heads = kv_heads,
                                                  .head_dim = 24}));
    }
  }
}

TEST(Geometry, EveryPageSize) {
  const Problem problem = random_problem({.sequences = {{20, 150}, {3, 1100}}, .head_dim = 16});
  for (int64_t page_size :
       {1, 2, 3, 5, 7, 8, 13, 16, 31, 63, 64, 65, 100, 528, 1056, 4096, 100000}) {
    expect_right_on_all_targets(problem, {.page_size = page_size, .placement = 3});
  }
}

TEST(Geometry, EveryContextLengthAroundATile) {
  for (int64_t context = 0; context <= 140; ++context) {
    expect_right_on_all_targets(
        random_problem({.sequences = {{std::min<int64_t>(context, 3), context}},
                        .num_q_heads = 3,
                        .num_kv_heads = 1,
                        .head_dim = 8}));
  }
}

TEST(Geometry, EveryChunkSizeAroundARowTile) {
  for (int64_t chunk = 0; chunk <= 60; ++chunk) {
    expect_right_on_all_targets(random_problem(
        {.sequences = {{chunk, 100}}, .num_q_heads = 5, .num_kv_heads = 1, .head_dim = 8}));
  }
}

TEST(Geometry, ContextsOfSeveralSegments) {
  for (int64_t context : {1023, 1024, 1025, 2047, 2048, 2049, 4100}) {
    expect_right_on_all_targets(random_problem(
        {.sequences = {{3, context}}, .num_q_heads = 2, .num_kv_heads = 1, .head_dim = 16}));
  }
}

TEST(Geometry, AChunkLongerThanItsContextHasRowsThatSeeNothing) {
  const Problem problem = random_problem({.sequences = {{20, 7}, {4, 0}, {1, 1}}});
  expect_right_on_all_targets(problem);
  for (const Where& where : all_targets()) {
    SCOPED_TRACE(describe(where));
    const Results got = run(problem, {}, where);
    for (int64_t row = 0; row < 24; ++row) {
      if (row >= 13 && row < 20) continue;  // positions 0 to 6
      for (int64_t h = 0; h < got.num_q_heads; ++h) {
        EXPECT_EQ(got.lse[row * got.num_q_heads + h], -std::numeric_limits<float>::infinity());
        for (int64_t d = 0; d < got.v_head_dim; ++d) {
          ASSERT_EQ(got.at(row, h, d), 0.0) << row;
          ASSERT_FALSE(std::signbit(got.at(row, h, d))) << row;
        }
      }
    }
  }
}

TEST(Geometry, ARowThatSeesNothingHasItsSinkAsLse) {
  Problem problem = random_problem({.sequences = {{5, 2}, {2, 0}}});
  add_sinks(problem);
  expect_right_on_all_targets(problem);
  for (const Where& where : all_targets()) {
    const Results got = run(problem, {}, where);
    for (int64_t h = 0; h < got.num_q_heads; ++h) {
      EXPECT_EQ(got.lse[h], problem.sinks[h]) << describe(where);
      EXPECT_EQ(got.at(0, h, 0), 0.0) << describe(where);
    }
  }
}

TEST(Geometry, RowsBeforeKvStartSeeNothing) {
  // Rows at 80..99; the first slot of the table stands at 90.
  Problem problem = random_problem({.sequences = {{20, 100}, {3, 50}}});
  problem.kv_start_given = true;
  problem.sequences[0].kv_start = 90;
  problem.sequences[1].kv_start = 1000;  // behind the context: nothing at all
  expect_right_on_all_targets(problem, {.page_size = 7});
}

TEST(Geometry, EmptyThingsAreFine) {
  expect_right_on_all_targets(random_problem({.sequences = {{0, 0}}}));
  expect_right_on_all_targets(random_problem({.sequences = {{0, 30}, {0, 0}, {0, 5}}}));
  expect_right_on_all_targets(random_problem({.sequences = {{0, 0}, {2, 30}, {0, 9}}}));
  for (const Where& where : all_targets()) {
    const Problem no_sequence = random_problem({.sequences = {}});
    EXPECT_TRUE(call(lay_out(no_sequence, {}, {}), where).ok()) << describe(where);
    EXPECT_TRUE(call(lay_out(no_sequence, {}, {.padding_rows = 3}), where).ok()) << describe(where);
  }
}

TEST(Geometry, AWindowMayBeLargerThanAnything) {
  Problem problem = random_problem({});
  const Problem plain = problem;
  for (int64_t window : {int64_t{1} << 31, int64_t{1} << 32, std::numeric_limits<int64_t>::max()}) {
    problem.options.sliding_window = window;
    for (const Where& where : all_targets()) {
      EXPECT_EQ(difference(run(plain, {}, where), run(problem, {}, where)), std::nullopt) << window;
    }
  }
}

// Numbers of the view, each `by` larger.
std::vector<int32_t> shifted(const TensorView& view, int32_t by) {
  std::vector<int32_t> numbers;
  for (int64_t i = 0; i < view.shape[0]; ++i) {
    numbers.push_back(static_cast<const int32_t*>(view.data)[i * view.strides[0]] + by);
  }
  return numbers;
}

TEST(Geometry, PositionsUpToTheLargestInt32GiveTheBitsOfSmallOnes) {
  // Whole segments of 1024 keys further, where the last key of the context stands at 2^31 - 2.
  constexpr int32_t kShift = std::numeric_limits<int32_t>::max() - 2047;
  for (int64_t num_rows : {1, 20}) {
    Problem problem = random_problem({.sequences = {{num_rows, 2047}, {1, 2047}},
                                      .head_dim = 16,
                                      .query_dtype = DType::kBFloat16,
                                      .cache_dtype = DType::kBFloat16});
    problem.kv_start_given = true;
    problem.sequences[0].kv_start = 700;
    problem.sequences[1].kv_start = 2001;
    const std::vector<Chunk> chunks = {{0, 0, num_rows}, {1, 0, 1}};
    for (auto options : {AttentionOptions{}, AttentionOptions{.sliding_window = 100},
                         AttentionOptions{.mask_value = -3.0f}}) {
      problem.options = options;
      for (const Where& where : all_targets()) {
        SCOPED_TRACE(describe(where));
        const Arguments near = lay_out(problem, chunks, {});
        ASSERT_TRUE(call(near, where).ok());
        Arguments far = lay_out(problem, chunks, {});
        const std::vector<int32_t> lens = shifted(far.context_lens, kShift);
        const std::vector<int32_t> starts = shifted(far.options.kv_start, kShift);
        far.context_lens = TensorView(lens.data(), {2});
        far.options.kv_start = TensorView(starts.data(), {2});
        const Status status = call(far, where);
        ASSERT_TRUE(status.ok()) << status.message();
        const auto bytes = [](const GuardedBuffer& b) {
          return std::vector<std::byte>(b.data(), b.data() + b.size());
        };
        EXPECT_EQ(bytes(far.output_memory), bytes(near.output_memory));
        EXPECT_EQ(bytes(far.lse_memory), bytes(near.lse_memory));
      }
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
