#include "support/variations.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <iterator>
#include <optional>

namespace pagefill::testing {
namespace {

// An emulated processor is a hundred times slower: there, one variation of four stands for the rest.
size_t variation_step() {
  static const size_t step = std::getenv("PAGEFILL_TEST_EMULATED") != nullptr ? 4 : 1;
  return step;
}

}  // namespace

std::vector<Variation> mixed_variations(const Problem& problem) {
  const bool may_cut = problem.options.mask_value <= kMaskExcludes;
  std::vector<Variation> variations;
  for (size_t i = 0; i < std::size(kPageSizes); ++i) {
    const Layout layout = {.page_size = kPageSizes[i],
                           .cache_order = kCacheOrders[i % std::size(kCacheOrders)],
                           .placement = static_cast<uint32_t>(i + 1),
                           .extra_pages = static_cast<int64_t>(i % 3),
                           .extra_table_entries = static_cast<int64_t>(i % 2),
                           .gap = static_cast<int64_t>(i % 4),
                           .heads_outermost = i % 2 == 1,
                           .unused = i % 3 == 0 ? Unused::kOldTokens : Unused::kNaN};
    const Cut cut{may_cut ? kChunkSizes[i % std::size(kChunkSizes)] : 0, i % 2 == 0};
    variations.push_back({layout, kThreads[i % std::size(kThreads)], cut});
  }
  return variations;
}

void expect_same_bits(const Problem& problem, const Where& where,
                      const std::vector<Variation>& variations) {
  const Results expected = run(problem, {}, where);
  for (size_t i = 0; i < variations.size(); i += variation_step()) {
    const Variation& v = variations[i];
    const Where with_threads = {where.backend, where.target, v.threads};
    EXPECT_EQ(difference(expected, run(problem, v.layout, with_threads, v.cut)), std::nullopt)
        << describe(with_threads) << ": " << describe(problem) << "\n  " << describe(v.layout)
        << ", chunks of " << v.cut.chunk_size << (v.cut.alone ? ", alone" : ", in a batch");
  }
}

}  // namespace pagefill::testing
