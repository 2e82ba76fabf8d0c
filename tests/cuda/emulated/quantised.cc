// Caches of 8 bits: every element, every kind of scale, bits, unused memory.
#include <cmath>
#include <limits>

#include "cuda/emulated/emulated_run.h"
#include "pagefill/float_types.h"
#include "support/option_table.h"

namespace pagefill::testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

float number(DType dtype, int byte) {
  const auto bits = static_cast<uint8_t>(byte);
  if (dtype == DType::kInt8) return static_cast<float>(static_cast<int8_t>(bits));
  if (dtype == DType::kFloat8E4M3) return static_cast<float>(float8_e4m3::from_bits(bits));
  return static_cast<float>(float8_e5m2::from_bits(bits));
}

// Row i sees key i alone, which has byte i. No call writes an int8 of -128, nor do the tests.
constexpr int kNeverWritten = 128;
Problem every_element(DType query, DType cache) {
  Problem p = random_problem(quantised_geometry(query, cache, 64, {{256, 256}}));
  p.key_scale = p.value_scale = {};
  p.options.sliding_window = 1;
  p.options.softmax_scale = 1.0f;
  Sequence& seq = p.sequences[0];
  for (std::vector<float>* numbers : {&seq.query, &seq.keys, &seq.values})
    std::fill(numbers->begin(), numbers->end(), 0.0f);
  return p;
}

TEST(Quantised, EveryValueIsExact) {
  for (DType query : kHalves) {
    for (DType cache : kQuantisedDTypes) {
      Problem p = every_element(query, cache);
      for (int i = 0; i < 256; ++i)
        std::fill_n(p.sequences[0].values.begin() + i * 128, 128, number(cache, i));
      for (int64_t page_size : {3, 16}) {
        const WithSchedule schedule(next_schedule());
        const Results got = run(p, {.page_size = page_size}, kDevice);
        EXPECT_EQ(got.reports.at(0).target, expected_target(p));
        for (int i = 0; i < 256; ++i) {
          if (cache == DType::kInt8 && i == kNeverWritten) continue;
          for (int64_t d : {0, 7, 8, 15, 16, 63}) {
            EXPECT_TRUE(close(got.at(i, 3, d), round_to(query, number(cache, i)), 0))
                << dtype_name(cache) << " " << i << ", got " << got.at(i, 3, d);
          }
        }
      }
    }
  }
}

TEST(Quantised, EveryKeyIsExact) {
  for (DType query : kHalves) {
    for (DType cache : kQuantisedDTypes) {
      Problem p = every_element(query, cache);
      for (int i = 0; i < 256; ++i) {
        const size_t dim = static_cast<size_t>(i) % 64;
        for (size_t h = 0; h < 4; ++h)
          p.sequences[0].query[(static_cast<size_t>(i) * 4 + h) * 64 + dim] = 0.5f;
        for (size_t h = 0; h < 2; ++h)
          p.sequences[0].keys[(static_cast<size_t>(i) * 2 + h) * 64 + dim] = number(cache, i);
      }
      const WithSchedule schedule(next_schedule());
      const Results got = run(p, {}, kDevice);
      for (int i = 0; i < 256; ++i) {
        if (cache == DType::kInt8 && i == kNeverWritten) continue;
        const double want = number(cache, i) / 2.0;
        // A row of a NaN has no lse, nor has one whose only score is -inf.
        const float lse = got.lse[static_cast<size_t>(i * 4 + 3)];
        EXPECT_TRUE(std::isfinite(want) ? close(lse, want, 3e-7 * std::abs(want))
                                        : !std::isfinite(lse))
            << dtype_name(cache) << " " << i << ", got " << lse;
      }
    }
  }
}

std::vector<Lengths> mixed() {
  return {{20, 150}, {1, 1100}, {0, 90}, {70, 140}, {5, 5}, {1, 1}, {9, 4}};
}

// What differs between the caches is how an element is widened, which takes no other thread.
void expect_right_in_schedules(const Geometry& g) {
  const Problem p = random_problem(g);
  g.cache_dtype == DType::kInt8 ? expect_right_in_all_schedules(p) : expect_right(p);
}
void expect_mixed_right(DType query, int64_t head_dim) {
  for (DType cache : kQuantisedDTypes)
    expect_right_in_schedules(quantised_geometry(query, cache, head_dim, mixed()));
}

TEST(Quantised, BFloat16OfHeadDim64InSchedules) { expect_mixed_right(DType::kBFloat16, 64); }
TEST(Quantised, BFloat16OfHeadDim128InSchedules) { expect_mixed_right(DType::kBFloat16, 128); }
TEST(Quantised, BFloat16OfHeadDim256InSchedules) { expect_mixed_right(DType::kBFloat16, 256); }
TEST(Quantised, Float16OfHeadDim64InSchedules) { expect_mixed_right(DType::kFloat16, 64); }
TEST(Quantised, Float16OfHeadDim128InSchedules) { expect_mixed_right(DType::kFloat16, 128); }
TEST(Quantised, Float16OfHeadDim256InSchedules) { expect_mixed_right(DType::kFloat16, 256); }

TEST(Quantised, FewRowsInSchedules) {
  for (int64_t head_dim : {64, 128, 256}) {
    const DType query = head_dim == 128 ? DType::kFloat16 : DType::kBFloat16;
    for (DType cache : kQuantisedDTypes) {
      expect_right_in_schedules(
          quantised_geometry(query, cache, head_dim, {{1, 1100}, {8, 1030}, {3, 64}, {2, 129}}));
    }
  }
}

TEST(Quantised, HeadDimsBetweenTheWidths) {
  for (DType query : kHalves) {
    for (int64_t head_dim : {8, 40, 72, 96, 136, 192, 248}) {
      Geometry g = quantised_geometry(query, DType::kInt8, head_dim, {{33, 150}, {1, 70}});
      g.v_head_dim = head_dim == 192 ? 24 : head_dim;
      for (int64_t gap : {0, 1, 4, 8}) {
        expect_right(random_problem(g), {.page_size = gap == 0 ? 16 : 3, .gap = gap});
      }
    }
  }
}

TEST(Quantised, PageSizesAndOrdersOfTheCache) {
  for (int64_t head_dim : {64, 128, 256}) {
    for (int64_t rows : {40, 2}) {
      const Problem p = random_problem(quantised_geometry(DType::kBFloat16, DType::kFloat8E4M3,
                                                          head_dim, {{rows, 300}, {1, 170}}));
      const Expected expected = oracle(p);
      for (int64_t page_size : {1, 3, 64}) {
        for (CacheOrder order : kCacheOrders)
          expect(expected, p, {.page_size = page_size, .cache_order = order, .placement = 3});
      }
    }
  }
}

void expect_options_right(DType query, DType cache, int64_t head_dim) {
  for (const OptionCase& c : kOptionTable) {
    SCOPED_TRACE(c.name);
    Problem many =
        random_problem(quantised_geometry(query, cache, head_dim, {{40, 150}, {1, 130}, {9, 9}}));
    Problem few = random_problem(quantised_geometry(query, cache, head_dim, {{3, 150}, {1, 1030}}));
    for (bool has_slots : {true, false}) {
      if (!has_slots) {
        for (Problem* p : {&many, &few})
          add_key_scale(*p, ScalePer::kHead), add_value_scale(*p, ScalePer::kHead);
      }
      c.apply(many), c.apply(few);
      expect_right(many, {.unused = Unused::kNaN});
      expect_right(few, {.page_size = 6, .unused = Unused::kInfinity});
    }
  }
}

TEST(Quantised, OptionsOfInt8) { expect_options_right(DType::kBFloat16, DType::kInt8, 64); }
TEST(Quantised, OptionsOfFloat8E4M3) {
  expect_options_right(DType::kBFloat16, DType::kFloat8E4M3, 64);
}
TEST(Quantised, OptionsOfFloat8E5M2) {
  expect_options_right(DType::kFloat16, DType::kFloat8E5M2, 128);
}

TEST(Quantised, NoScales) {
  for (DType cache : kQuantisedDTypes) {
    Problem p = random_problem(quantised_geometry(DType::kBFloat16, cache, 128, mixed()));
    p.key_scale = p.value_scale = {};
    expect_right(p);
  }
}

// A factor of scores that is no normal number above 0 is not one of the weights.
TEST(Quantised, ScalesOfAnySizeAndSign) {
  for (float key_scale : {-0.25f, 0.0f, 1e-41f, 1e20f, kNaN}) {
    for (float value_scale : {-2.0f, 0.0f, 1e-30f, 1e30f, kInf, -kInf, kNaN}) {
      for (int64_t rows : {40, 2}) {
        Problem p = random_problem(
            quantised_geometry(DType::kBFloat16, DType::kInt8, 64, {{rows, 1200}, {1, 1}}));
        p.key_scale = {ScalePer::kHead, {key_scale, 0.01f}};
        p.value_scale = {ScalePer::kHead, {0.02f, value_scale}};
        SCOPED_TRACE(std::to_string(key_scale) + ", " + std::to_string(value_scale));
        expect_right(p);
      }
    }
  }
}

TEST(Quantised, ScalesOfSlotsThatARowDoesNotSeeDoNotTouchIt) {
  for (int64_t head_dim : {64, 256}) {
    for (bool is_key : {true, false}) {
      for (float scale : {kNaN, kInf}) {
        if (is_key && scale == kInf) continue;  // makes scores of -inf too
        Problem p = random_problem(
            quantised_geometry(DType::kBFloat16, DType::kInt8, head_dim, {{40, 130}}));
        const Results expected = run(p, {}, kDevice);
        Sequence& seq = p.sequences[0];
        (is_key ? seq.key_scales : seq.value_scales)[110 * 2] = scale;  // of KV head 0
        for (int64_t page_size : {3, 16}) {
          const WithSchedule schedule(next_schedule());
          const Results got = run(p, {.page_size = page_size}, kDevice);
          for (int64_t row = 0; row < 40; ++row) {
            for (int64_t h = 0; h < 4; ++h) {
              const bool sees = row >= 20 && h < 2;
              const float x = got.at(row, h, 5), before = expected.at(row, h, 5);
              ASSERT_TRUE(sees ? !std::isfinite(x) : x == before)
                  << "row " << row << ", head " << h << ", got " << x << ", before " << before;
            }
          }
        }
      }
    }
  }
}

TEST(Quantised, SpecialValuesGiveWhatTheFormulaGives) {
  for (DType cache : {DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    for (int64_t key : {5, 100, 129, 1030}) {
      for (float value : {kInf, -kInf, kNaN}) {
        if (cache == DType::kFloat8E4M3 && !std::isnan(value)) continue;
        for (ScalePer per : kScalesPer) {
          Problem p = random_problem(quantised_geometry(DType::kFloat16, cache, 64, {{40, 1100}}));
          add_value_scale(p, per);
          std::fill_n(p.sequences[0].values.begin() + key * 128, 128, value);
          const Expected expected = oracle(p);
          const WithSchedule schedule(next_schedule());
          const Results got = run(p, {}, kDevice);
          for (size_t i = 0; i < expected.output.size(); ++i) {
            if (std::isfinite(expected.output[i])) continue;
            const auto row = static_cast<int64_t>(i) / 64;
            ASSERT_TRUE(close(got.at(row / 4, row % 4, static_cast<int64_t>(i) % 64),
                              expected.output[i], 0));
          }
        }
      }
    }
  }
}

const std::vector<Way>& all_ways() {
  static const std::vector<Way> ways = {
      {{.page_size = 1}, {5, false}},
      {{.page_size = 3, .placement = 2, .gap = 1}, {24, true}},
      {{.page_size = 8, .cache_order = CacheOrder::kTokenMajor, .unused = Unused::kNaN},
       {0, true},
       40},
      {{.page_size = 64, .cache_order = CacheOrder::kInterleavedSlots, .unused = Unused::kInfinity},
       {17, false},
       1},
      {{.page_size = 1056, .gap = 8, .heads_outermost = true}, {0, false}, 200}};
  return ways;
}

TEST(Quantised, BitsDoNotDependOnHowACallIsCutPlacedAndSplit) {
  for (int64_t head_dim : {64, 128, 256}) {
    const DType query = head_dim == 64 ? DType::kFloat16 : DType::kBFloat16;
    for (DType cache : kQuantisedDTypes) {
      if (cache != DType::kInt8 && head_dim == 256) continue;
      Geometry g =
          quantised_geometry(query, cache, head_dim, {{70, 130}, {9, 1200}, {20, 20}, {2, 1025}});
      g.num_q_heads = 3, g.num_kv_heads = 1;
      Problem p = random_problem(g);
      expect_same_bits(p, all_ways());
      add_key_scale(p, ScalePer::kHead), add_value_scale(p, ScalePer::kHead);
      expect_same_bits(p, all_ways());
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
