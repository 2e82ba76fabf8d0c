// Every backend on every instruction set against the float64 oracle: options x dtypes x head dims x head
// ratios. The options come from kOptionTable, which does not compile when one of them has no case.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/option_table.h"
#include "support/oracle.h"
#include "support/run.h"
#include "support/tolerance.h"

namespace pagefill::testing {
namespace {

constexpr int64_t kHeadDims[] = {8, 40, 64, 128, 256};
constexpr int64_t kHeadRatios[] = {1, 3, 8};

// A chunk that crosses the end of a KV tile (64), a decode token, and a whole prompt.
const std::vector<Lengths> kSequences = {{7, 131}, {1, 80}, {5, 5}};

// Runs the problem on all targets; each with another layout, so that no layout is a target's own.
void expect_conformance(const Problem& problem) {
  const Expected expected = oracle(problem);
  uint32_t i = 0;
  for (const Where& where : all_targets()) {
    const Layout layout = {.page_size = i % 2 == 0 ? 16 : 5,
                           .cache_order = kCacheOrders[i % 4],
                           .placement = ++i,
                           .unused = Unused::kNaN};
    SCOPED_TRACE(describe(where) + ", " + describe(layout));
    expect_close(run(problem, layout, where), expected, problem);
  }
}

// One test a pair of dtypes, so that they can run side by side.
void expect_conformance_of(DType query, DType cache) {
  for (int64_t head_dim : kHeadDims) {
    for (int64_t ratio : kHeadRatios) {
      const Problem plain = random_problem({.sequences = kSequences,
                                            .num_q_heads = ratio,
                                            .num_kv_heads = 1,
                                            .head_dim = head_dim,
                                            .query_dtype = query,
                                            .cache_dtype = cache});
      expect_conformance(plain);
      for (const OptionCase& option : kOptionTable) {
        SCOPED_TRACE(option.name);
        Problem problem = plain;
        option.apply(problem);
        expect_conformance(problem);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(Conformance, QueryFloat32CacheFloat32) {
  expect_conformance_of(DType::kFloat32, DType::kFloat32);
}
TEST(Conformance, QueryFloat32CacheBFloat16) {
  expect_conformance_of(DType::kFloat32, DType::kBFloat16);
}
TEST(Conformance, QueryFloat32CacheFloat16) {
  expect_conformance_of(DType::kFloat32, DType::kFloat16);
}
TEST(Conformance, QueryBFloat16CacheFloat32) {
  expect_conformance_of(DType::kBFloat16, DType::kFloat32);
}
TEST(Conformance, QueryBFloat16CacheBFloat16) {
  expect_conformance_of(DType::kBFloat16, DType::kBFloat16);
}
TEST(Conformance, QueryBFloat16CacheFloat16) {
  expect_conformance_of(DType::kBFloat16, DType::kFloat16);
}
TEST(Conformance, QueryFloat16CacheFloat32) {
  expect_conformance_of(DType::kFloat16, DType::kFloat32);
}
TEST(Conformance, QueryFloat16CacheBFloat16) {
  expect_conformance_of(DType::kFloat16, DType::kBFloat16);
}
TEST(Conformance, QueryFloat16CacheFloat16) {
  expect_conformance_of(DType::kFloat16, DType::kFloat16);
}

TEST(Conformance, EveryPairOfOptions) {
  const Problem plain = random_problem({.sequences = kSequences, .num_q_heads = 4, .num_kv_heads = 2});
  for (const OptionCase& first : kOptionTable) {
    for (const OptionCase& second : kOptionTable) {
      if (first.option >= second.option) continue;
      SCOPED_TRACE(std::string(first.name) + " and " + second.name);
      Problem problem = plain;
      first.apply(problem);
      second.apply(problem);
      expect_conformance(problem);
    }
  }
}

TEST(Conformance, OptionsOnContextsOfSeveralSegments) {
  const Problem plain = random_problem(
      {.sequences = {{5, 2100}, {1, 1100}}, .num_q_heads = 2, .num_kv_heads = 1, .head_dim = 16});
  for (const OptionCase& option : kOptionTable) {
    SCOPED_TRACE(option.name);
    Problem problem = plain;
    option.apply(problem);
    expect_conformance(problem);
  }
}

// Scores of tens, as trained models have them: one key of a row may outweigh all others.
TEST(Conformance, PeakedScores) {
  for (float factor : {4.0f, 16.0f}) {
    Problem problem = random_problem({.sequences = kSequences, .head_dim = 64});
    for (Sequence& seq : problem.sequences) {
      for (float& x : seq.keys) x *= factor;
    }
    expect_conformance(problem);
  }
}

}  // namespace
}  // namespace pagefill::testing
