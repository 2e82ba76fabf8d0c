// append_kv into quantised caches: what is stored times its scale is what was given, as nearly as the
// dtype can say it.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <optional>
#include <random>
#include <vector>

#include "append_case.h"
#include "pagefill/attention.h"
#include "support/elements.h"

namespace pagefill::testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST(AppendKvQuantises, EveryDtypeToEveryDtypeWithScalesOfEveryShape) {
  for (DType from : kFloatDTypes) {
    for (DType to : kQuantisedDTypes) {
      for (CacheOrder order : kCacheOrders) {
        for (ScalePer per :
             {ScalePer::kNone, ScalePer::kTensor, ScalePer::kHead, ScalePer::kSlot}) {
          expect_appends(
              {.tokens_dtype = from, .cache_dtype = to, .cache_order = order, .scale = per});
        }
        expect_appends({.tokens_dtype = from,
                        .cache_dtype = to,
                        .cache_order = order,
                        .token_gap = 8,
                        .choose_scales = true});
      }
    }
  }
}

TEST(AppendKvQuantises, KeysMayHaveScalesThatAreGivenAndValuesThatAreChosen) {
  AppendCase append({.cache_dtype = DType::kInt8, .scale = ScalePer::kHead});
  AppendCase chosen({.cache_dtype = DType::kInt8, .choose_scales = true});
  append.options.value_scale = {};
  append.options.chosen_value_scale = chosen.options.chosen_value_scale;
  ASSERT_TRUE(append.call().ok());
  append.expect_written();
}

// One row through append_kv: what is stored, as numbers, and the scale that was chosen.
struct Row {
  std::vector<double> stored;
  float scale = 0;
};

Row quantise(const std::vector<float>& row, DType dtype, std::optional<float> scale) {
  const auto dim = static_cast<int64_t>(row.size());
  const TensorView tokens(row.data(), {1, 1, dim});
  const std::vector<int32_t> starts = {0, 1}, lens = {1}, pages = {0};
  std::vector<std::byte> keys(row.size()), values(row.size());
  const std::vector<float> given = {scale.value_or(0)};
  float chosen[2] = {};
  AppendOptions options;
  if (scale) {
    options.key_scale = options.value_scale = given;
  } else {
    options.chosen_key_scale = MutableTensorView(&chosen[0], {1, 1, 1});
    options.chosen_value_scale = MutableTensorView(&chosen[1], {1, 1, 1});
  }
  const Status status = append_kv(tokens, tokens, {keys.data(), dtype, {1, 1, 1, dim}},
                                  {values.data(), dtype, {1, 1, 1, dim}}, starts, lens,
                                  {pages.data(), {1, 1}}, options);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(keys, values);
  Row result{{}, scale.value_or(chosen[0])};
  for (int64_t d = 0; d < dim; ++d) result.stored.push_back(load(keys.data(), dtype, d));
  return result;
}

// Half the distance between the numbers around x / scale, times scale.
double bound(DType dtype, double x, double scale) {
  switch (dtype) {
    case DType::kInt8:
      return scale / 2;
    case DType::kFloat8E4M3:  // 2^-4 of it, or half of the smallest subnormal 2^-9
      return std::max(std::abs(x) * 0x1p-4, scale * 0x1p-10);
    default:
      return std::max(std::abs(x) * 0x1p-3, scale * 0x1p-17);
  }
}

TEST(AppendKvQuantises, WithChosenScalesTheErrorIsWithinItsBound) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (DType dtype : kQuantisedDTypes) {
    // A chosen scale is a rounded quotient: the largest element may lie beyond the largest number by
    // that rounding, 2^-24.
    const double rounding = largest_of(dtype) * 0x1p-24;
    for (int exponent = -100; exponent <= 120; exponent += 11) {
      for (int i = 0; i < 40; ++i) {
        std::vector<float> row(64);
        for (float& x : row) x = std::ldexp(normal(random), exponent);
        const Row result = quantise(row, dtype, std::nullopt);
        const double scale = result.scale;
        for (size_t d = 0; d < row.size(); ++d) {
          ASSERT_LE(std::abs(row[d] - scale * result.stored[d]),
                    bound(dtype, row[d], scale) + rounding * scale)
              << dtype_name(dtype) << " of " << row[d] << " with " << scale;
        }
      }
    }
  }
}

// A tie of x / scale is a tie of real numbers: 31 bits, which a double holds and a float32 does not.
TEST(AppendKvQuantises, RoundsTheRealQuotientOnceToNearestEven) {
  std::mt19937 random(4);
  std::uniform_real_distribution<float> scales(0.5f, 1.0f);
  int ties = 0;
  for (int i = 0; i < 4000; ++i) {
    const float scale = i % 2 == 0 ? scales(random) : std::ldexp(1.0f, i % 7);
    std::vector<float> row(128);
    for (size_t n = 0; n < row.size(); ++n) {  // next to half-way from n - 64 to n - 63
      row[n] = static_cast<float>(static_cast<double>(scale) * (static_cast<double>(n) - 63.5));
    }
    const Row result = quantise(row, DType::kInt8, scale);
    for (size_t n = 0; n < row.size(); ++n) {
      // Exact: products of 24 and 8 bits, and differences of neighbours.
      const auto distance = [&](double stored) { return std::abs(row[n] - scale * stored); };
      const double got = result.stored[n];
      const double other = std::abs(got) < std::abs(row[n] / scale) ? got + (row[n] > 0 ? 1 : -1)
                                                                    : got - (row[n] > 0 ? 1 : -1);
      ASSERT_LE(distance(got), distance(other)) << row[n] << " / " << scale;
      if (distance(got) == distance(other)) {
        ++ties;
        ASSERT_EQ(std::fmod(got, 2), 0) << row[n] << " / " << scale;
      }
    }
  }
  EXPECT_GT(ties, 1000) << "the test has ties";
}

TEST(AppendKvQuantises, ChoosesScalesOfExtremeRows) {
  const float tiny = std::numeric_limits<float>::denorm_min();
  for (DType dtype : kQuantisedDTypes) {
    const auto largest = static_cast<float>(largest_of(dtype));
    SCOPED_TRACE(dtype_name(dtype));
    const Row zeros = quantise({0, -0.0f, 0, 0, 0, 0, 0, 0}, dtype, std::nullopt);
    EXPECT_EQ(zeros.scale, 1);
    for (double stored : zeros.stored) EXPECT_EQ(stored, 0);

    // Below 2^-126 * largest the scale stays normal, so that nothing saturates.
    const Row denormals =
        quantise({tiny, -3 * tiny, 0x1p-126f, 0, 0, 0, 0, 0}, dtype, std::nullopt);
    EXPECT_EQ(denormals.scale, 0x1p-126f);
    EXPECT_EQ(denormals.stored[2], 1);

    const float max = std::numeric_limits<float>::max();
    const Row huge = quantise({max, -max, max / 2, 0, 0, 0, 0, 0}, dtype, std::nullopt);
    EXPECT_EQ(huge.scale, max / largest);
    EXPECT_EQ(huge.stored[0], largest);
    EXPECT_EQ(huge.stored[1], -largest);

    for (float special : {kNaN, kInf, -kInf}) {
      const Row spoilt = quantise({1, 2, special, 4, 5, 6, 7, 8}, dtype, std::nullopt);
      EXPECT_TRUE(std::isnan(spoilt.scale)) << special;
      for (double stored : spoilt.stored) EXPECT_TRUE(std::isnan(spoilt.scale * stored));
    }
  }
}

TEST(AppendKvQuantises, WithScalesThatAreGivenItSaturates) {
  const std::vector<float> row = {kInf, -kInf, kNaN, 1e30f, -1e30f, 127.4f, -127.6f, -128.0f};
  const Row int8 = quantise(row, DType::kInt8, 1.0f);
  EXPECT_EQ(int8.stored, (std::vector<double>{127, -127, 0, 127, -127, 127, -127, -127}));

  const Row e4m3 = quantise(row, DType::kFloat8E4M3, 0.5f);
  EXPECT_EQ(e4m3.stored[0], 448);
  EXPECT_EQ(e4m3.stored[1], -448);
  EXPECT_TRUE(std::isnan(e4m3.stored[2]));
  EXPECT_EQ(e4m3.stored[3], 448);
  EXPECT_EQ(e4m3.stored[4], -448);

  const Row e5m2 = quantise(row, DType::kFloat8E5M2, 1e-30f);
  EXPECT_EQ(e5m2.stored[0], kInf);
  EXPECT_EQ(e5m2.stored[1], -kInf);
  EXPECT_TRUE(std::isnan(e5m2.stored[2]));
  EXPECT_EQ(e5m2.stored[3], 57344) << "the quotient is finite, although no float32";
  EXPECT_EQ(e5m2.stored[4], -57344);
}

// Quantised and attended to, against the attention to the numbers themselves: each is off by at most the
// bound of its element, and the first row's output is its value.
TEST(AppendKvQuantises, WritesWhereAttentionReads) {
  for (DType dtype : kQuantisedDTypes) {
    const AppendCase append({.sequences = {{7, 7}}, .cache_dtype = dtype, .choose_scales = true});
    ASSERT_TRUE(append.call().ok());
    std::vector<float> query(7 * 2 * 16, 1.0f), output(7 * 2 * 24);
    AttentionOptions options;
    options.key_scale = append.options.chosen_key_scale;
    options.value_scale = append.options.chosen_value_scale;
    const Status status = prefill_page_attention(
        {query.data(), {7, 2, 16}}, append.key_cache, append.value_cache, append.context_lens,
        append.pages, options, MutableTensorView(output.data(), {7, 2, 24}),
        {.backend = "reference"});
    ASSERT_TRUE(status.ok()) << status.message();
    const auto* values = static_cast<const float*>(append.values.data);
    for (int64_t i = 0; i < 2 * 24; ++i) {
      double largest = 0;
      for (int64_t d = 0; d < 24; ++d) {
        largest = std::max(largest, std::abs(static_cast<double>(values[i / 24 * 24 + d])));
      }
      const double scale = largest / largest_of(dtype);
      EXPECT_NEAR(output[static_cast<size_t>(i)], values[i],
                  bound(dtype, values[i], scale) + largest * 0x1p-22)
          << dtype_name(dtype) << ", element " << i;
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
