// Promise 2: the bits of a row depend on its logical data, the options and the instruction set
// alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cfenv>
#include <optional>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "support/option_table.h"
#include "support/run.h"
#include "support/variations.h"

namespace pagefill::testing {
namespace {

// A chunk longer than the longest cut, several KV tiles and
// segments, a decode token, a whole prompt, and a context of one key more than a power of two.
Problem long_problem() {
  return random_problem({.sequences = {{70, 130}, {9, 2200}, {1, 1537}, {20, 20}, {2, 1025}},
                         .num_q_heads = 3,
                         .num_kv_heads = 1,
                         .head_dim = 16,
                         .v_head_dim = 24});
}

TEST(Invariance, PageSizeAndPlacement) {
  std::vector<Variation> variations;
  for (int64_t page_size : kPageSizes) {
    for (uint32_t placement : {0u, 5u, 6u}) {
      variations.push_back(
          {{.page_size = page_size, .placement = placement, .extra_pages = 3}, 1, {}});
    }
  }
  for (const Where& where : fast_targets()) expect_same_bits(long_problem(), where, variations);
}

TEST(Invariance, NumberOfThreads) {
  std::vector<Variation> variations;
  for (int threads : {2, 3}) {
    for (int64_t chunk_size : kChunkSizes) {
      for (bool alone : {false, true}) variations.push_back({{}, threads, {chunk_size, alone}});
    }
  }
  for (const Where& where : fast_targets()) expect_same_bits(long_problem(), where, variations);
}

TEST(Invariance, CutIntoChunks) {
  std::vector<Variation> variations;
  for (int64_t chunk_size : kChunkSizes) variations.push_back({{}, 1, {chunk_size, true}});
  for (const Where& where : fast_targets()) expect_same_bits(long_problem(), where, variations);
}

// Rounds upwards and, where the processor has such a mode beside, takes denormals as 0.
class OddFloatMode {
 public:
  OddFloatMode() {
    std::fegetenv(&before_);
    std::fesetround(FE_UPWARD);
#if defined(__SSE__)
    _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
  }
  ~OddFloatMode() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
};

TEST(Invariance, FloatingPointModeOfTheCaller) {
  Problem p = long_problem();
  for (size_t i = 0; i < p.sequences[0].values.size(); i += 3) p.sequences[0].values[i] = 1e-40f;
  for (size_t i = 0; i < p.sequences[0].keys.size(); i += 5) p.sequences[0].keys[i] = -1e-39f;
  for (Where where : all_targets()) {
    const Results expected = run(p, {}, where);
    for (int threads : {1, 3}) {
      where.threads = threads;
      std::optional<Results> got;
      {
        const OddFloatMode odd;
        got = run(p, {}, where);
        EXPECT_EQ(std::fegetround(), FE_UPWARD) << "the caller's mode has to come back";
      }
      EXPECT_EQ(difference(*got, expected), std::nullopt) << describe(where);
    }
  }
}

TEST(Invariance, AloneAndInRaggedBatches) {
  std::vector<Variation> variations = {{{}, 1, {0, true}},
                                       {{}, 1, {8, false}},
                                       {{.padding_rows = 5}, 1, {24, false}},
                                       {{.extra_table_entries = 9}, 1, {64, true}}};
  for (const Where& where : fast_targets()) {
    expect_same_bits(long_problem(), where, variations);
    Problem reversed = long_problem();
    std::reverse(reversed.sequences.begin(), reversed.sequences.end());
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
  for (const Where& where : fast_targets()) expect_same_bits(long_problem(), where, variations);
}

TEST(Invariance, DecodeGivesTheBitsThatPrefillGives) {
  const Problem prompt = random_problem({.sequences = {{300, 300}}, .head_dim = 16});
  for (const Where& where : fast_targets()) {
    expect_same_bits(prompt, where, {{{.page_size = 3}, 2, {1, true}}});
  }
}

// From one row to more than the CPU backend calls few, over ends of KV tiles and of segments, so that rows of a
// chunk take different keys of a tile; and tiles of a few keys.
TEST(Invariance, AnyNumberOfFewRowsGivesTheBitsOfMany) {
  struct Dtypes {
    DType query, cache;
  };
  struct Heads {
    int64_t q, kv;
  };
  std::vector<Variation> variations;
  for (int64_t chunk_size = 1; chunk_size <= 18; ++chunk_size) {
    variations.push_back({{}, 1, {chunk_size, true}});
  }
  for (Dtypes dtypes :
       {Dtypes{DType::kFloat32, DType::kFloat32}, Dtypes{DType::kBFloat16, DType::kBFloat16},
        Dtypes{DType::kFloat16, DType::kFloat16}, Dtypes{DType::kFloat32, DType::kInt8},
        Dtypes{DType::kBFloat16, DType::kFloat8E4M3},
        Dtypes{DType::kFloat32, DType::kFloat8E5M2}}) {
    for (Heads heads : {Heads{1, 1}, Heads{3, 1}, Heads{5, 1}}) {
      for (std::optional<int64_t> window : {std::optional<int64_t>(), std::optional<int64_t>(61)}) {
        if (window && dtypes.cache != DType::kFloat32)
          continue;  // keys are chosen before they are read
        Problem problem = random_problem({.sequences = {{19, 71}, {5, 5}, {21, 1095}},
                                          .num_q_heads = heads.q,
                                          .num_kv_heads = heads.kv,
                                          .head_dim = 16,
                                          .v_head_dim = 48,
                                          .query_dtype = dtypes.query,
                                          .cache_dtype = dtypes.cache});
        problem.options.sliding_window = window;
        for (const Where& where : fast_targets()) expect_same_bits(problem, where, variations);
      }
    }
  }
}

TEST(Invariance, HoldsForTheReferenceToo) {
  const Problem problem =
      random_problem({.sequences = {{20, 150}, {1, 90}, {9, 9}}, .head_dim = 16});
  expect_same_bits(problem, {"reference", "auto", 1}, mixed_variations(problem));
}

TEST(Invariance, HoldsForEveryPairOfDtypes) {
  for (const Where& where : fast_targets()) {
    for (DType query : kFloatDTypes) {
      for (DType cache : kCacheDTypes) {
        const Problem problem = random_problem({.sequences = {{30, 230}, {1, 1100}, {9, 9}},
                                                .head_dim = 16,
                                                .query_dtype = query,
                                                .cache_dtype = cache});
        expect_same_bits(problem, where, mixed_variations(problem));
      }
    }
  }
}

TEST(Invariance, HoldsForEveryOption) {
  for (const Where& where : fast_targets()) {
    for (const OptionCase& option : kOptionTable) {
      SCOPED_TRACE(option.name);
      Problem problem =
          random_problem({.sequences = {{30, 230}, {1, 1100}, {9, 9}}, .head_dim = 16});
      option.apply(problem);
      expect_same_bits(problem, where, mixed_variations(problem));
    }
  }
}

TEST(Invariance, HoldsForEveryHeadRatioAndHeadDim) {
  struct Heads {
    int64_t q, kv;
  };
  for (const Where& where : fast_targets()) {
    for (Heads heads : {Heads{1, 1}, Heads{3, 1}, Heads{10, 2}, Heads{33, 1}}) {
      for (int64_t head_dim : {8, 80, 512}) {
        const Problem problem = random_problem({.sequences = {{26, 70}, {1, 130}},
                                                .num_q_heads = heads.q,
                                                .num_kv_heads = heads.kv,
                                                .head_dim = head_dim,
                                                .v_head_dim = head_dim == 80 ? 72 : head_dim});
        expect_same_bits(problem, where,
                         {{{.page_size = 3, .placement = 2}, 3, {1, false}},
                          {{.page_size = 100, .gap = 4}, 2, {5, true}},
                          {{.page_size = 64, .unused = Unused::kNaN}, 1, {8, true}}});
      }
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
