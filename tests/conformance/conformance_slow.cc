// The whole product: options x dtypes x head dims x head ratios, a test a pair of dtypes, so that
// they can run side by side.
#include <gtest/gtest.h>

#include "support/conformance.h"
#include "support/option_table.h"

namespace pagefill::testing {
namespace {

constexpr int64_t kHeadDims[] = {8, 40, 64, 128, 256};
constexpr int64_t kHeadRatios[] = {1, 3, 8};

void expect_conformance_of(DType query, DType cache) {
  for (int64_t head_dim : kHeadDims) {
    for (int64_t ratio : kHeadRatios) {
      const Problem plain = random_problem({.sequences = {{7, 131}, {1, 80}, {5, 5}},
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

TEST(ConformanceSlow, QueryFloat32CacheFloat32) {
  expect_conformance_of(DType::kFloat32, DType::kFloat32);
}
TEST(ConformanceSlow, QueryFloat32CacheBFloat16) {
  expect_conformance_of(DType::kFloat32, DType::kBFloat16);
}
TEST(ConformanceSlow, QueryFloat32CacheFloat16) {
  expect_conformance_of(DType::kFloat32, DType::kFloat16);
}
TEST(ConformanceSlow, QueryBFloat16CacheFloat32) {
  expect_conformance_of(DType::kBFloat16, DType::kFloat32);
}
TEST(ConformanceSlow, QueryBFloat16CacheBFloat16) {
  expect_conformance_of(DType::kBFloat16, DType::kBFloat16);
}
TEST(ConformanceSlow, QueryBFloat16CacheFloat16) {
  expect_conformance_of(DType::kBFloat16, DType::kFloat16);
}
TEST(ConformanceSlow, QueryFloat16CacheFloat32) {
  expect_conformance_of(DType::kFloat16, DType::kFloat32);
}
TEST(ConformanceSlow, QueryFloat16CacheBFloat16) {
  expect_conformance_of(DType::kFloat16, DType::kBFloat16);
}
TEST(ConformanceSlow, QueryFloat16CacheFloat16) {
  expect_conformance_of(DType::kFloat16, DType::kFloat16);
}
TEST(ConformanceSlow, QueryFloat32CacheInt8) {
  expect_conformance_of(DType::kFloat32, DType::kInt8);
}
TEST(ConformanceSlow, QueryFloat32CacheFloat8E4M3) {
  expect_conformance_of(DType::kFloat32, DType::kFloat8E4M3);
}
TEST(ConformanceSlow, QueryFloat32CacheFloat8E5M2) {
  expect_conformance_of(DType::kFloat32, DType::kFloat8E5M2);
}
TEST(ConformanceSlow, QueryBFloat16CacheInt8) {
  expect_conformance_of(DType::kBFloat16, DType::kInt8);
}
TEST(ConformanceSlow, QueryBFloat16CacheFloat8E4M3) {
  expect_conformance_of(DType::kBFloat16, DType::kFloat8E4M3);
}
TEST(ConformanceSlow, QueryBFloat16CacheFloat8E5M2) {
  expect_conformance_of(DType::kBFloat16, DType::kFloat8E5M2);
}
TEST(ConformanceSlow, QueryFloat16CacheInt8) {
  expect_conformance_of(DType::kFloat16, DType::kInt8);
}
TEST(ConformanceSlow, QueryFloat16CacheFloat8E4M3) {
  expect_conformance_of(DType::kFloat16, DType::kFloat8E4M3);
}
TEST(ConformanceSlow, QueryFloat16CacheFloat8E5M2) {
  expect_conformance_of(DType::kFloat16, DType::kFloat8E5M2);
}

}  // namespace
}  // namespace pagefill::testing
