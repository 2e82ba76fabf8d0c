// Promise 2 over dtypes and options, and over options that cross segments.
#include <gtest/gtest.h>

#include <string>

#include "support/option_table.h"
#include "support/run.h"
#include "support/variations.h"

namespace pagefill::testing {
namespace {

void expect_invariance_of(DType query, DType cache) {
  for (const Where& where : fast_targets()) {
    for (const OptionCase& option : kOptionTable) {
      SCOPED_TRACE(option.name);
      Problem problem = random_problem({.sequences = {{30, 230}, {1, 1100}, {9, 9}},
                                        .head_dim = 16,
                                        .query_dtype = query,
                                        .cache_dtype = cache});
      option.apply(problem);
      expect_same_bits(problem, where, mixed_variations(problem));
    }
  }
}

TEST(InvarianceSlow, HoldsForEveryCacheDtypeAndOption) {
  for (DType cache : kCacheDTypes) expect_invariance_of(DType::kFloat32, cache);
}

TEST(InvarianceSlow, HoldsForEveryQueryDtypeAndOption) {
  for (DType query : kFloatDTypes) expect_invariance_of(query, DType::kFloat32);
}

Problem long_problem() {
  return random_problem({.sequences = {{70, 1100}, {9, 2200}, {1, 1537}, {3, 1025}},
                         .num_q_heads = 4,
                         .num_kv_heads = 2,
                         .head_dim = 16,
                         .v_head_dim = 24,
                         .seed = 3});
}

TEST(InvarianceSlow, HoldsForEveryOptionAcrossSegments) {
  for (const Where& where : fast_targets()) {
    for (const OptionCase& option : kOptionTable) {
      SCOPED_TRACE(option.name);
      Problem problem = long_problem();
      option.apply(problem);
      expect_same_bits(problem, where, mixed_variations(problem));
    }
    for (int64_t window : {1000, 1024, 1500, 2199}) {
      SCOPED_TRACE("window " + std::to_string(window));
      Problem problem = long_problem();
      problem.options.sliding_window = window;
      expect_same_bits(problem, where, mixed_variations(problem));
    }
    for (int64_t kv_start : {1000, 1024, 1024 + 77}) {
      SCOPED_TRACE("kv_start " + std::to_string(kv_start));
      Problem problem = long_problem();
      drop_keys_before(problem, kv_start);
      expect_same_bits(problem, where, mixed_variations(problem));
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
