// Every option, unused memory, infinities and NaN.
#include <cmath>
#include <limits>

#include "cuda/emulated/emulated_run.h"
#include "support/option_table.h"

namespace pagefill::testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr Unused kHostile[] = {Unused::kNaN, Unused::kInfinity, Unused::kNegativeInfinity};

// Scales make a cache a quantised one, which is the portable kernel's.
bool is_of_another_kernel(const OptionCase& c) {
  return c.option == kKeyScale || c.option == kValueScale;
}

void expect_options_right(DType dtype, int64_t head_dim) {
  for (const OptionCase& c : kOptionTable) {
    if (is_of_another_kernel(c)) continue;
    SCOPED_TRACE(c.name);
    Problem many = random_problem(geometry(dtype, head_dim, {{70, 230}, {1, 130}, {9, 9}}));
    Problem few = random_problem(geometry(dtype, head_dim, {{3, 230}, {1, 1100}}));
    c.apply(many), c.apply(few);
    expect_right(many, {.unused = Unused::kNaN});
    expect_right(few, {.page_size = 6, .unused = Unused::kInfinity});
  }
}

TEST(Options, OfBFloat16HeadDim64) { expect_options_right(DType::kBFloat16, 64); }
TEST(Options, OfFloat16HeadDim64) { expect_options_right(DType::kFloat16, 64); }
TEST(Options, OfBFloat16HeadDim128) { expect_options_right(DType::kBFloat16, 128); }
TEST(Options, OfFloat16HeadDim256) { expect_options_right(DType::kFloat16, 256); }

TEST(Options, WindowsAcrossSegments) {
  for (int64_t window : {1, 129, 1025, 1100}) {
    Problem p = random_problem(geometry(DType::kBFloat16, 64, {{70, 2100}, {1, 2049}}));
    p.options.sliding_window = window;
    expect_right(p, {.unused = Unused::kNaN});
  }
}

TEST(Options, KvStartsThatNoBoxBeginsAt) {
  for (int64_t kv_start : {1, 4, 8, 16, 100, 128, 190}) {
    for (int64_t page_size : {4, 16, 64}) {
      Problem p = random_problem(geometry(DType::kBFloat16, 64, {{40, 200}, {1, 190}}));
      drop_keys_before(p, kv_start);
      expect_right(p, {.page_size = page_size, .unused = Unused::kNaN});
    }
  }
}

// Rows before kv_start, in row tiles of their own beside others of a sequence that is split.
TEST(Options, RowTilesThatSeeNothingOfASplitSequence) {
  for (int64_t head_dim : {64, 256}) {
    Geometry g = geometry(DType::kBFloat16, head_dim, {{400, 5300}});
    g.num_q_heads = g.num_kv_heads = 1;
    Problem p = random_problem(g);
    drop_keys_before(p, 5100);
    emulated::Schedule schedule;
    schedule.multiprocessors = 64;
    const WithSchedule with(schedule);
    expect_close(run_anew(p), oracle(p), p);
  }
}

TEST(UnusedMemory, ChangesNoBit) {
  for (int64_t head_dim : {56, 64, 128, 256}) {
    const DType dtype = head_dim == 128 ? DType::kFloat16 : DType::kBFloat16;
    for (std::vector<Lengths> lengths :
         {std::vector<Lengths>{{40, 150}, {1, 77}, {0, 90}, {3, 0}, {5, 5}},
          std::vector<Lengths>{{2, 1029}, {1, 77}}}) {
      Problem p = random_problem(geometry(dtype, head_dim, std::move(lengths)));
      if (head_dim == 64) p.options.sliding_window = 50;
      for (int64_t page_size : {1, 16, 100}) {
        const Results clean = run(p, {.page_size = page_size}, kDevice);
        for (Unused unused : kHostile) {
          for (int64_t gap : {3, 8}) {
            const WithSchedule schedule(next_schedule());
            const Layout layout = {.page_size = page_size,
                                   .placement = 7,
                                   .extra_pages = 5,
                                   .extra_table_entries = 3,
                                   .padding_rows = 4,
                                   .gap = gap,
                                   .unused = unused};
            EXPECT_EQ(difference(clean, run(p, layout, kDevice)), std::nullopt) << describe(layout);
          }
        }
      }
    }
  }
}

void set_token(Problem& p, int64_t key, bool is_key, float value) {
  Sequence& seq = p.sequences[0];
  std::vector<float>& data = is_key ? seq.keys : seq.values;
  const int64_t size = p.num_kv_heads * (is_key ? p.head_dim : p.v_head_dim);
  std::fill_n(data.begin() + key * size, size, value);
}

void expect_rows_equal(const Results& got, const Results& expected, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t h = 0; h < got.num_q_heads; ++h) {
      const auto at = static_cast<size_t>(row * got.num_q_heads + h);
      ASSERT_EQ(got.lse[at], expected.lse[at]) << "row " << row << ", head " << h;
      for (int64_t d = 0; d < got.v_head_dim; ++d)
        ASSERT_EQ(got.at(row, h, d), expected.at(row, h, d)) << "row " << row << ", head " << h;
    }
  }
}

// A chunk of 40 tokens at 90 to 129, across KV tiles that end at 128. Of a window of 10 the token at 110 is seen by
// the rows from 110 on to 119.
TEST(SpecialNumbers, ATokenThatARowDoesNotSeeDoesNotTouchIt) {
  for (DType dtype : kHalves) {
    for (int64_t head_dim : {64, 256}) {
      for (bool has_window : {false, true}) {
        Problem healthy = random_problem(geometry(dtype, head_dim, {{40, 130}}));
        if (has_window) healthy.options.sliding_window = 10;
        const Results expected = run(healthy, {}, kDevice);
        for (bool is_key : {true, false}) {
          for (float value : {kNaN, kInf, -kInf}) {
            for (int64_t page_size : {3, 16}) {
              const WithSchedule schedule(next_schedule());
              Problem ill = healthy;
              set_token(ill, 110, is_key, value);
              const Results got = run(ill, {.page_size = page_size}, kDevice);
              expect_rows_equal(got, expected, 0, 20);
              if (has_window) expect_rows_equal(got, expected, 30, 40);
              EXPECT_TRUE(std::isnan(got.at(25, 0, 0)) || std::isinf(got.at(25, 0, 0)) || is_key);
            }
          }
        }
      }
    }
  }
}

// 0 * inf, in a tile that not all rows see: the weight is that of the key itself, and not of one beside it.
TEST(SpecialNumbers, AnInfinityOfWeight0IsNaN) {
  for (DType dtype : kHalves) {
    for (int64_t key : {100, 101, 109, 110, 122}) {
      Problem p = random_problem(geometry(dtype, 64, {{40, 130}}));
      for (float& x : p.sequences[0].query) x = round_to(dtype, std::abs(x) + 0.125f);
      set_token(p, key, true, -kInf);
      set_token(p, key, false, kInf);
      const WithSchedule schedule(next_schedule());
      const Results got = run(p, {}, kDevice);
      for (int64_t row = 0; row < 40; ++row)
        EXPECT_EQ(std::isnan(got.at(row, 0, 5)), row >= key - 90)
            << "row " << row << ", key " << key;
    }
  }
}

TEST(SpecialNumbers, InValuesGiveWhatTheFormulaGives) {
  for (DType dtype : kHalves) {
    for (int64_t key : {5, 100, 129, 1030}) {
      for (float value : {kInf, -kInf, kNaN}) {
        Problem p = random_problem(geometry(dtype, 64, {{40, 1100}}));
        set_token(p, key, false, value);
        const Expected expected = oracle(p);
        const WithSchedule schedule(next_schedule());
        const Results got = run(p, {}, kDevice);
        for (size_t i = 0; i < expected.output.size(); ++i) {
          if (std::isfinite(expected.output[i])) continue;
          const auto row = static_cast<int64_t>(i) / p.v_head_dim;
          ASSERT_TRUE(close(got.at(row / 4, row % 4, static_cast<int64_t>(i) % p.v_head_dim),
                            expected.output[i], 0));
        }
      }
    }
  }
}

TEST(SpecialNumbers, LargeScoresAndScoresOfMinusInfinity) {
  for (DType dtype : kHalves) {
    for (float scale : {20.0f, 3e5f, -3e5f}) {
      Problem p = random_problem(geometry(dtype, 64, {{40, 1200}, {2, 1100}}));
      p.options.softmax_scale = scale;
      expect_right(p);
    }
    // Queries that are positive make scores of -inf of the first segment's keys.
    for (int64_t rows : {40, 2}) {
      Problem p = random_problem(geometry(dtype, 64, {{rows, 1200}}));
      for (float& x : p.sequences[0].query) x = round_to(dtype, std::abs(x) + 0.125f);
      for (int64_t key = 0; key < 1024; ++key) set_token(p, key, true, -kInf);
      expect_right(p);
    }
  }
}

// Products with a scale of 0, or of zeros with one below it, are -0: in a segment behind the first one too.
TEST(SpecialNumbers, ScoresOfMinus0) {
  for (DType dtype : kHalves) {
    for (float scale : {-0.125f, 0.0f}) {
      for (int64_t rows : {40, 2}) {
        Problem p = random_problem(geometry(dtype, 64, {{rows, 2300}}));
        for (float& x : p.sequences[0].query) x = round_to(dtype, std::abs(x) + 0.125f);
        for (float& x : p.sequences[0].keys)
          x = scale == 0 ? round_to(dtype, -std::abs(x) - 0.125f) : 0.0f;
        p.options.softmax_scale = scale;
        emulated::Schedule schedule = next_schedule();
        schedule.multiprocessors = 1;  // nothing is split
        const WithSchedule with(schedule);
        expect_close(run_anew(p), oracle(p), p);
      }
    }
  }
}

TEST(SpecialNumbers, RowsWhoseScoresGrowAreRescaled) {
  for (DType dtype : kHalves) {
    for (int64_t head_dim : {64, 128, 256}) {
      Problem p = random_problem(geometry(dtype, head_dim, {{70, 700}, {1, 1500}}));
      for (Sequence& seq : p.sequences) {
        for (size_t i = 0; i < seq.keys.size(); ++i) {
          const float growth = 1 + 8 * static_cast<float>(i) / static_cast<float>(seq.keys.size());
          seq.keys[i] = round_to(dtype, seq.keys[i] * growth);
        }
      }
      expect_right(p);
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
