// The same rows have the same bits, however they are cut, placed, split, and whatever order their threads take.
#include <algorithm>

#include "cuda/emulated/emulated_run.h"
#include "support/option_table.h"

namespace pagefill::testing {
namespace {

std::vector<Lengths> mixed() { return {{70, 130}, {9, 2200}, {1, 1537}, {20, 20}, {2, 1025}}; }

const std::vector<Way>& all_ways() {
  static const std::vector<Way> ways = {
      {{.page_size = 1}, {5, false}},
      {{.page_size = 3, .placement = 2, .gap = 1}, {24, true}},
      {{.page_size = 4, .cache_order = CacheOrder::kTokenMajor}, {0, true}, 40},
      {{.page_size = 8, .placement = 4, .padding_rows = 3}, {17, false}, 7},
      {{.page_size = 64, .cache_order = CacheOrder::kInterleavedSlots, .unused = Unused::kNaN},
       {8, false},
       1},
      {{.page_size = 100, .placement = 5, .extra_pages = 3, .heads_outermost = true},
       {64, true},
       132},
      {{.page_size = 1056, .gap = 8, .unused = Unused::kInfinity}, {0, false}, 200}};
  return ways;
}

void expect_bits(DType dtype, int64_t head_dim) {
  Geometry g = geometry(dtype, head_dim, mixed());
  g.num_q_heads = 3, g.num_kv_heads = 1;
  expect_same_bits(random_problem(g), all_ways());
}

TEST(Bits, OfBFloat16HeadDim64) { expect_bits(DType::kBFloat16, 64); }
TEST(Bits, OfBFloat16HeadDim128) { expect_bits(DType::kBFloat16, 128); }
TEST(Bits, OfBFloat16HeadDim256) { expect_bits(DType::kBFloat16, 256); }
TEST(Bits, OfFloat16HeadDim64) { expect_bits(DType::kFloat16, 64); }
TEST(Bits, OfFloat16HeadDim128) { expect_bits(DType::kFloat16, 128); }
TEST(Bits, OfFloat16HeadDim256) { expect_bits(DType::kFloat16, 256); }
TEST(Bits, OfHeadDimsBetween) {
  Geometry g = geometry(DType::kBFloat16, 96, mixed());
  g.v_head_dim = 72;
  expect_same_bits(random_problem(g), all_ways());
}

TEST(Bits, OfEveryOption) {
  for (const OptionCase& c : kOptionTable) {
    if (c.option == kKeyScale || c.option == kValueScale) continue;
    SCOPED_TRACE(c.name);
    Problem p = random_problem(geometry(DType::kBFloat16, 64, {{30, 230}, {1, 1100}, {9, 9}}));
    c.apply(p);
    // Where masked keys count, a row takes in the chunk's later tokens: how rows are cut is data.
    const bool may_cut = p.options.mask_value <= kMaskExcludes;
    expect_same_bits(p, {{{.page_size = 3}, {may_cut ? 5 : 0, false}, 40},
                         {{.page_size = 64, .unused = Unused::kNaN}, {may_cut ? 17 : 0, true}}});
  }
}

TEST(Bits, OfDecodeAreThoseOfPrefill) {
  for (int64_t head_dim : {64, 128}) {
    const Problem prompt = random_problem(geometry(DType::kBFloat16, head_dim, {{140, 140}}));
    expect_same_bits(prompt, {{{.page_size = 3}, {1, true}}});
  }
}

TEST(Bits, DoNotDependOnTheBatch) {
  for (DType dtype : kHalves) {
    Problem p = random_problem(geometry(dtype, 64, mixed()));
    const Results expected = run(p, {}, kDevice);
    Problem reversed = p;
    std::reverse(reversed.sequences.begin(), reversed.sequences.end());
    const WithSchedule schedule(next_schedule());
    const Results got = run(reversed, {.page_size = 8}, kDevice);
    const auto bytes = static_cast<int64_t>(expected.output.size()),
               row = bytes / expected.num_rows();
    int64_t first = 0, behind = expected.num_rows();
    for (const Sequence& seq : p.sequences) {
      behind -= seq.num_rows;
      EXPECT_TRUE(std::equal(expected.output.begin() + first * row,
                             expected.output.begin() + (first + seq.num_rows) * row,
                             got.output.begin() + behind * row))
          << "rows from " << first << " on";
      first += seq.num_rows;
    }
  }
}

TEST(Bits, DoNotDependOnTheSchedule) {
  for (int64_t head_dim : {64, 256}) {
    const Problem p =
        random_problem(geometry(DType::kBFloat16, head_dim, {{70, 1100}, {3, 1300}, {1, 1}}));
    std::vector<Results> all;
    for (const emulated::Schedule& schedule : emulated::kSchedules) {
      for (int64_t page_size : {5, 16}) {
        const WithSchedule with(schedule);
        all.push_back(run_anew(p, {.page_size = page_size}));
        EXPECT_EQ(difference(all[0], all.back()), std::nullopt);
      }
    }
    for (uint32_t seed = 10; seed < 14; ++seed) {
      const WithSchedule with({emulated::Order::kRandom, emulated::Moment::kRandom,
                               emulated::Moment::kRandom, seed, 5, 0xff});
      EXPECT_EQ(difference(all[0], run_anew(p)), std::nullopt) << "seed " << seed;
    }
  }
}

// From one multiprocessor, where nothing is split, to more than there are tasks.
TEST(Bits, DoNotDependOnTheSplit) {
  for (int64_t head_dim : {64, 256}) {
    for (int64_t rows : {150, 3}) {
      Geometry g = geometry(DType::kBFloat16, head_dim, {{rows, 3300}, {1, 40}});
      g.num_q_heads = g.num_kv_heads = 1;
      Problem p = random_problem(g);
      std::vector<Way> ways;
      for (int multiprocessors : {1, 2, 4, 8, 64}) ways.push_back({{}, {}, multiprocessors});
      expect_same_bits(p, ways);
      p.options.sliding_window = 1035;
      expect_same_bits(p, ways);
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
