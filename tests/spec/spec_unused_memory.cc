// Promise 1: unused memory never matters.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/option_table.h"
#include "support/oracle.h"
#include "support/run.h"
#include "support/tolerance.h"

namespace pagefill::testing {
namespace {

constexpr Unused kHostile[] = {Unused::kNaN, Unused::kInfinity, Unused::kNegativeInfinity};

// Pages that nobody owns, table entries that nobody needs, rows and gaps that are nobody's.
Layout with_much_unused(int64_t page_size, Unused unused) {
  return {.page_size = page_size,
          .placement = 7,
          .extra_pages = 5,
          .extra_table_entries = 3,
          .padding_rows = 4,
          .gap = 3,
          .unused = unused};
}

void expect_unused_memory_does_not_matter(const Problem& problem, const Where& where) {
  SCOPED_TRACE(describe(where) + ": " + describe(problem));
  for (int64_t page_size : {1, 16, 100}) {
    const Results clean = run(problem, {.page_size = page_size}, where);
    for (Unused unused : kHostile) {
      const Layout hostile = with_much_unused(page_size, unused);
      EXPECT_EQ(difference(clean, run(problem, hostile, where)), std::nullopt) << describe(hostile);
    }
  }
}

TEST(UnusedMemory, ChangesNoBitForAnyDtype) {
  for (const Where& where : all_targets()) {
    for (DType query : kFloatDTypes) {
      for (DType cache : kCacheDTypes) {
        expect_unused_memory_does_not_matter(
            random_problem({.sequences = {{20, 150}, {1, 77}, {0, 90}, {3, 0}, {5, 5}},
                            .query_dtype = query,
                            .cache_dtype = cache}),
            where);
      }
    }
  }
}

TEST(UnusedMemory, ChangesNoBitForAnyOption) {
  for (const Where& where : all_targets()) {
    for (const OptionCase& option : kOptionTable) {
      SCOPED_TRACE(option.name);
      Problem problem = random_problem({.sequences = {{20, 150}, {1, 201}, {0, 90}}});
      option.apply(problem);
      expect_unused_memory_does_not_matter(problem, where);
    }
  }
}

TEST(UnusedMemory, ChangesNoBitOfAContextOfSeveralSegments) {
  for (const Where& where : fast_targets()) {
    for (int threads : {1, 3}) {
      expect_unused_memory_does_not_matter(
          random_problem({.sequences = {{9, 2111}, {1, 1029}}, .head_dim = 16}),
          {where.backend, where.target, threads});
    }
  }
}

TEST(UnusedMemory, PagesBeforeTheWindowMayBeFreed) {
  Problem problem = random_problem({.sequences = {{4, 300}, {1, 300}}});
  problem.options.sliding_window = 33;
  const Chunk chunks[] = {{0, 0, 4}, {1, 0, 1}};
  const Layout freed = {.page_size = 16, .unused = Unused::kNaN};
  const Arguments arguments = lay_out(problem, chunks, freed);
  // Row 0 stands at 296 and sees keys from 264, in page 16; the decode row at 299 sees from 267.
  const auto* table = static_cast<const int32_t*>(arguments.page_table.data);
  const auto is_page = [&](int64_t entry) {
    return table[entry] >= 0 && table[entry] < arguments.key_cache.shape[1];
  };
  for (int64_t page = 0; page < 19; ++page) {
    EXPECT_EQ(is_page(page), page >= 16) << "the test frees what it should: page " << page;
  }
  EXPECT_EQ(arguments.key_cache.shape[1], 6) << "three pages a sequence";
  for (const Where& where : all_targets()) {
    SCOPED_TRACE(describe(where));
    EXPECT_EQ(difference(run(problem, {}, where), run(problem, freed, where)), std::nullopt);
  }
}

TEST(UnusedMemory, IsNotTouchedOnEitherSideOfWhatIsNeeded) {
  for (const Where& where : all_targets()) {
    for (Guard guard : {Guard::kBehind, Guard::kBefore}) {
      for (CacheOrder order : kCacheOrders) {
        for (DType dtype : kCacheDTypes) {
          for (int64_t context : {1, 15, 61, 64, 131}) {
            const Problem problem =
                random_problem({.sequences = {{1, context}, {3, context}},
                                .head_dim = 8,
                                .v_head_dim = 24,
                                .query_dtype = is_quantised(dtype) ? DType::kFloat32 : dtype,
                                .cache_dtype = dtype});
            const Layout layout = {
                .page_size = 7, .cache_order = order, .unused = Unused::kNaN, .guard = guard};
            SCOPED_TRACE(describe(where) + ": " + describe(layout));
            expect_close(run(problem, layout, where), oracle(problem), problem);
          }
        }
      }
    }
  }
}

TEST(UnusedMemory, ASequenceOfNaNReachesNoOtherSequenceOfItsBatch) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  const Problem healthy = random_problem({.sequences = {{7, 90}, {9, 140}, {1, 65}, {6, 6}}});
  Problem ill = healthy;
  for (size_t s : {size_t{1}, size_t{3}}) {
    ill.sequences[s].query.assign(ill.sequences[s].query.size(), kNaN);
    ill.sequences[s].keys.assign(ill.sequences[s].keys.size(), kNaN);
    ill.sequences[s].values.assign(ill.sequences[s].values.size(), kNaN);
  }
  for (const Where& where : all_targets()) {
    SCOPED_TRACE(describe(where));
    const Results expected = run(healthy, {}, where), got = run(ill, {}, where);
    for (int64_t row = 0; row < got.num_rows(); ++row) {
      const bool is_ill = (row >= 7 && row < 16) || row >= 17;
      for (int64_t h = 0; h < got.num_q_heads; ++h) {
        for (int64_t d = 0; d < got.v_head_dim; ++d) {
          if (is_ill) {
            ASSERT_TRUE(std::isnan(got.at(row, h, d))) << "row " << row;
          } else {
            ASSERT_EQ(got.at(row, h, d), expected.at(row, h, d)) << "row " << row;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
