// Promise 2: the bits of a row depend on its logical data, the options and the instruction set alone.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/option_table.h"
#include "support/run.h"

namespace pagefill::testing {
namespace {

constexpr int64_t kPageSizes[] = {1, 3, 16, 64, 100, 528, 1056};
constexpr int64_t kChunkSizes[] = {1, 5, 8, 24, 64, 0};  // 0: whole
constexpr int kThreads[] = {1, 2, 3};

// Several KV tiles, several segments, a decode token, a whole prompt, a context of one key more than a
// power of two.
Problem long_problem(uint32_t seed = 1) {
  return random_problem({.sequences = {{70, 2200}, {1, 1537}, {66, 66}, {3, 1025}},
                         .num_q_heads = 6,
                         .num_kv_heads = 2,
                         .head_dim = 16,
                         .v_head_dim = 24,
                         .seed = seed});
}

Where on(const Where& where, int threads) { return {where.backend, where.target, threads}; }

struct Variation {
  Layout layout;
  int threads = 1;
  Cut cut;
};

void expect_same_bits(const Problem& problem, const Where& where,
                      const std::vector<Variation>& variations) {
  const Results expected = run(problem, {}, on(where, 1));
  for (const Variation& v : variations) {
    EXPECT_EQ(difference(expected, run(problem, v.layout, on(where, v.threads), v.cut)), std::nullopt)
        << describe(on(where, v.threads)) << ": " << describe(problem) << "\n  " << describe(v.layout)
        << ", chunks of " << v.cut.chunk_size << (v.cut.alone ? ", alone" : ", in a batch");
  }
}

TEST(Invariance, PageSizeAndPlacement) {
  std::vector<Variation> variations;
  for (int64_t page_size : kPageSizes) {
    for (uint32_t placement : {0u, 5u, 6u}) {
      variations.push_back({{.page_size = page_size, .placement = placement, .extra_pages = 3}, 1, {}});
    }
  }
  for (const Where& where : all_targets()) expect_same_bits(long_problem(), where, variations);
}

TEST(Invariance, NumberOfThreads) {
  std::vector<Variation> variations;
  for (int threads : kThreads) {
    for (int64_t chunk_size : kChunkSizes) {
      for (bool alone : {false, true}) variations.push_back({{}, threads, {chunk_size, alone}});
    }
  }
  for (const Where& where : cpu_targets()) expect_same_bits(long_problem(), where, variations);
}

TEST(Invariance, CutIntoChunks) {
  std::vector<Variation> variations;
  for (int64_t chunk_size : kChunkSizes) variations.push_back({{}, 1, {chunk_size, true}});
  for (const Where& where : all_targets()) expect_same_bits(long_problem(), where, variations);
}

TEST(Invariance, AloneAndInRaggedBatches) {
  std::vector<Variation> variations = {{{}, 1, {0, true}},
                                       {{}, 1, {8, false}},
                                       {{.padding_rows = 5}, 1, {24, false}},
                                       {{.extra_table_entries = 9}, 1, {64, true}}};
  for (const Where& where : all_targets()) {
    expect_same_bits(long_problem(), where, variations);
    Problem reversed = long_problem();
    std::swap(reversed.sequences[0], reversed.sequences[3]);
    std::swap(reversed.sequences[1], reversed.sequences[2]);
    expect_same_bits(reversed, where, variations);
  }
}

TEST(Invariance, Strides) {
  std::vector<Variation> variations;
  for (CacheOrder order : kCacheOrders) {
    for (int64_t gap : {0, 1, 8}) {
      for (bool heads_outermost : {false, true}) {
        variations.push_back(
            {{.cache_order = order, .gap = gap, .heads_outermost = heads_outermost}, 1, {}});
      }
    }
  }
  for (const Where& where : all_targets()) expect_same_bits(long_problem(), where, variations);
}

TEST(Invariance, DecodeGivesTheBitsThatPrefillGives) {
  const Problem prompt = random_problem({.sequences = {{300, 300}}, .head_dim = 16});
  for (const Where& where : all_targets()) {
    expect_same_bits(prompt, where, {{{.page_size = 3}, 2, {1, true}}});
  }
}

// Everything at once: a few calls that differ from the plain one in all respects.
std::vector<Variation> mixed_variations(bool may_cut) {
  std::vector<Variation> variations;
  for (size_t i = 0; i < std::size(kPageSizes); ++i) {
    const Layout layout = {.page_size = kPageSizes[i],
                           .cache_order = kCacheOrders[i % 4],
                           .placement = static_cast<uint32_t>(i + 1),
                           .extra_pages = static_cast<int64_t>(i % 3),
                           .extra_table_entries = static_cast<int64_t>(i % 2),
                           .gap = static_cast<int64_t>(i % 4),
                           .heads_outermost = i % 2 == 1,
                           .unused = i % 3 == 0 ? Unused::kOldTokens : Unused::kNaN};
    const Cut cut{may_cut ? kChunkSizes[i % std::size(kChunkSizes)] : 0, i % 2 == 0};
    variations.push_back({layout, kThreads[i % 3], cut});
  }
  return variations;
}

TEST(Invariance, HoldsForEveryDtypeAndOption) {
  for (const Where& where : all_targets()) {
    for (DType query : kFloatDTypes) {
      for (DType cache : kFloatDTypes) {
        for (const OptionCase& option : kOptionTable) {
          SCOPED_TRACE(option.name);
          Problem problem = random_problem({.sequences = {{30, 230}, {1, 1100}, {9, 9}},
                                            .head_dim = 16,
                                            .query_dtype = query,
                                            .cache_dtype = cache});
          option.apply(problem);
          // Where masked keys count, a row takes in the chunk's later tokens: the cut is part of the data.
          const bool masked_keys_count = problem.options.mask_value > kMaskExcludes;
          expect_same_bits(problem, where, mixed_variations(!masked_keys_count));
        }
      }
    }
  }
}

TEST(Invariance, HoldsForEveryHeadRatioAndHeadDim) {
  struct Heads {
    int64_t q, kv;
  };
  for (const Where& where : all_targets()) {
    for (Heads heads : {Heads{1, 1}, Heads{3, 1}, Heads{10, 2}, Heads{7, 1}, Heads{8, 1}, Heads{33, 1}}) {
      for (int64_t head_dim : {8, 64, 80, 256, 512}) {
        const Problem problem = random_problem({.sequences = {{26, 150}, {1, 200}},
                                                .num_q_heads = heads.q,
                                                .num_kv_heads = heads.kv,
                                                .head_dim = head_dim,
                                                .v_head_dim = head_dim == 256 ? 72 : head_dim});
        expect_same_bits(problem, where,
                         {{{.page_size = 3, .placement = 2}, 3, {1, false}},
                          {{.page_size = 100, .gap = 4}, 2, {5, true}},
                          {{.page_size = 64, .unused = Unused::kNaN}, 1, {8, true}}});
      }
    }
  }
}

TEST(Invariance, HoldsForOptionsAcrossSegments) {
  for (const Where& where : cpu_targets()) {
    for (const OptionCase& option : kOptionTable) {
      SCOPED_TRACE(option.name);
      Problem problem = long_problem(3);
      option.apply(problem);
      const bool masked_keys_count = problem.options.mask_value > kMaskExcludes;
      expect_same_bits(problem, where, mixed_variations(!masked_keys_count));
    }
    for (int64_t window : {1000, 1024, 1500, 2199}) {
      SCOPED_TRACE("window " + std::to_string(window));
      Problem problem = long_problem(4);
      problem.options.sliding_window = window;
      expect_same_bits(problem, where, mixed_variations(true));
    }
    for (int64_t kv_start : {1000, 1024, 1024 + 77}) {
      SCOPED_TRACE("kv_start " + std::to_string(kv_start));
      Problem problem = long_problem(5);
      drop_keys_before(problem, kv_start);
      expect_same_bits(problem, where, mixed_variations(true));
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
