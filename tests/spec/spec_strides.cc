// Promise 6: strides, not copies.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <vector>

#include "support/oracle.h"
#include "support/run.h"
#include "support/tolerance.h"

namespace pagefill::testing {
namespace {

TEST(Strides, EveryOrderOfTheCacheIsReadInPlace) {
  for (DType query : kFloatDTypes) {
    for (DType cache : kCacheDTypes) {
      const Problem problem = random_problem({.sequences = {{20, 150}, {1, 90}},
                                              .head_dim = 24,
                                              .v_head_dim = 40,
                                              .query_dtype = query,
                                              .cache_dtype = cache});
      const Expected expected = oracle(problem);
      for (const Where& where : all_targets()) {
        for (CacheOrder order : kCacheOrders) {
          const Layout layout = {.cache_order = order, .placement = 4, .unused = Unused::kNaN};
          SCOPED_TRACE(describe(where) + ", " + describe(layout));
          expect_close(run(problem, layout, where), expected, problem);
        }
      }
    }
  }
}

// run() holds every byte between the rows against its canary, and all inputs are write-protected.
TEST(Strides, GapsBetweenRowsStayAsTheyWere) {
  const Problem problem = random_problem({.sequences = {{20, 150}, {30, 64}}});
  const Expected expected = oracle(problem);
  for (const Where& where : all_targets()) {
    for (int64_t gap : {1, 2, 7, 8, 64}) {
      for (bool heads_outermost : {false, true}) {
        const Layout layout = {.padding_rows = 2,
                               .gap = gap,
                               .heads_outermost = heads_outermost,
                               .unused = Unused::kNaN};
        SCOPED_TRACE(describe(where) + ", " + describe(layout));
        expect_close(run(problem, layout, where), expected, problem);
      }
    }
  }
}

// The case of models that project query, key and value in one product: [tokens, Hq + 2 Hkv,
// head_dim]. The output goes into a column block of a buffer of its own, in which other columns
// belong to others.
TEST(Strides, QueryIsAColumnBlockOfAFusedBuffer) {
  constexpr int64_t kTokens = 12, kHeads = 4, kDim = 32, kColumns = kHeads + 2 * 2;
  const Problem problem = random_problem({.sequences = {{kTokens, 100}}, .head_dim = kDim});
  const Chunk chunks[] = {{0, 0, kTokens}};
  const Expected expected = oracle(problem);
  for (const Where& where : all_targets()) {
    SCOPED_TRACE(describe(where));
    Arguments arguments = lay_out(problem, chunks, {});
    std::vector<float> qkv(kTokens * kColumns * kDim, std::numeric_limits<float>::quiet_NaN());
    std::vector<float> merged(kTokens * kColumns * kDim, -7.0f);
    for (int64_t i = 0; i < kTokens; ++i) {
      std::memcpy(&qkv[i * kColumns * kDim], &problem.sequences[0].query[i * kHeads * kDim],
                  kHeads * kDim * sizeof(float));
    }
    arguments.query = TensorView(qkv.data(), {kTokens, kHeads, kDim}, {kColumns * kDim, kDim, 1});
    arguments.output.output =
        MutableTensorView(&merged[2 * kDim], {kTokens, kHeads, kDim}, {kColumns * kDim, kDim, 1});
    const Status status = call(arguments, where);
    ASSERT_TRUE(status.ok()) << status.message();

    Results got{DType::kFloat32, kHeads, kDim, {}, std::vector<float>(kTokens * kHeads), {}};
    std::memcpy(got.lse.data(), arguments.lse_memory.data(), got.lse.size() * sizeof(float));
    for (int64_t i = 0; i < kTokens; ++i) {
      for (int64_t column = 0; column < kColumns; ++column) {
        const float* block = &merged[(i * kColumns + column) * kDim];
        if (column >= 2 && column < 2 + kHeads) {
          const auto* bytes = reinterpret_cast<const std::byte*>(block);
          got.output.insert(got.output.end(), bytes, bytes + kDim * sizeof(float));
        } else {
          for (int64_t d = 0; d < kDim; ++d) ASSERT_EQ(block[d], -7.0f) << "row " << i;
        }
      }
    }
    expect_close(got, expected, problem);
  }
}

// Output columns in the very rows that query comes from: they share a buffer, but no element.
TEST(Strides, QueryAndOutputMayBeColumnsOfOneBuffer) {
  constexpr int64_t kTokens = 12, kHeads = 4, kDim = 32;
  const Problem problem = random_problem({.sequences = {{kTokens, 100}}, .head_dim = kDim});
  const Chunk chunks[] = {{0, 0, kTokens}};
  for (const Where& where : all_targets()) {
    Arguments arguments = lay_out(problem, chunks, {});
    std::vector<float> buffer(kTokens * 2 * kHeads * kDim);
    for (int64_t i = 0; i < kTokens; ++i) {
      std::memcpy(&buffer[i * 2 * kHeads * kDim], &problem.sequences[0].query[i * kHeads * kDim],
                  kHeads * kDim * sizeof(float));
    }
    Arguments shared = lay_out(problem, chunks, {});
    shared.query = TensorView(buffer.data(), {kTokens, kHeads, kDim}, {2 * kHeads * kDim, kDim, 1});
    shared.output.output = MutableTensorView(&buffer[kHeads * kDim], {kTokens, kHeads, kDim},
                                             {2 * kHeads * kDim, kDim, 1});
    ASSERT_TRUE(call(arguments, where).ok());
    const Status status = call(shared, where);
    ASSERT_TRUE(status.ok()) << status.message();
    for (int64_t i = 0; i < kTokens; ++i) {
      EXPECT_EQ(std::memcmp(&buffer[(2 * i + 1) * kHeads * kDim],
                            arguments.output_memory.data() + i * kHeads * kDim * sizeof(float),
                            kHeads * kDim * sizeof(float)),
                0)
          << describe(where) << ", row " << i;
    }
  }
}

// One head of keys shared by both KV heads, by a stride of 0: inputs may overlap themselves.
TEST(Strides, InputsMayBroadcastWithAStrideOfZero) {
  const Problem one_head = random_problem({.num_q_heads = 2, .num_kv_heads = 1});
  const Chunk chunks[] = {{0, 0, 20}};
  for (const Where& where : all_targets()) {
    const Arguments plain = lay_out(one_head, chunks, {});
    Arguments broadcast = lay_out(one_head, chunks, {});
    broadcast.key_cache.shape[0] = broadcast.value_cache.shape[0] = 2;
    broadcast.key_cache.strides[0] = broadcast.value_cache.strides[0] = 0;
    ASSERT_TRUE(call(plain, where).ok());
    const Status status = call(broadcast, where);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(std::memcmp(plain.output_memory.data(), broadcast.output_memory.data(),
                          static_cast<size_t>(plain.output_memory.size())),
              0)
        << describe(where);
  }
}

// One page of one slot and one token of one head: no stride is ever stepped along, whatever it says. The
// sanitizers' builds see what is multiplied or added all the same.
TEST(Strides, ADimensionOfOneElementMayHaveAny) {
  const auto widen = [](auto& view, int dimensions) {
    for (int i = 0; i < dimensions; ++i) {
      if (view.shape[i] == 1) view.strides[i] = std::numeric_limits<int64_t>::max();
    }
  };
  for (DType cache : {DType::kFloat32, DType::kInt8}) {
    const Problem problem = random_problem(
        {.sequences = {{1, 1}}, .num_q_heads = 1, .num_kv_heads = 1, .cache_dtype = cache});
    const Chunk chunks[] = {{0, 0, 1}};
    for (const Where& where : all_targets()) {
      SCOPED_TRACE(describe(where));
      const Arguments plain = lay_out(problem, chunks, {.page_size = 1});
      Arguments wide = lay_out(problem, chunks, {.page_size = 1});
      widen(wide.query, 2), widen(wide.output.output, 2), widen(wide.output.lse, 2);
      widen(wide.key_cache, 3), widen(wide.value_cache, 3);
      widen(wide.context_lens, 1), widen(wide.page_table, 2);
      widen(wide.options.key_scale, 3), widen(wide.options.value_scale, 3);
      ASSERT_TRUE(call(plain, where).ok());
      const Status status = call(wide, where);
      ASSERT_TRUE(status.ok()) << status.message();
      EXPECT_EQ(std::memcmp(plain.output_memory.data(), wide.output_memory.data(),
                            static_cast<size_t>(plain.output_memory.size())),
                0);
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
