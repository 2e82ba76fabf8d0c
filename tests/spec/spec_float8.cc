// float8_e4m3 and float8_e5m2 against their definition: every code, and every way to round to one.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "pagefill/float_types.h"

namespace pagefill {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// A float of 8 bits by its definition: exponent bits, bias, and whether its largest exponent is of
// infinities and NaN (E5M2), or of numbers but for all ones (E4M3).
struct Definition {
  int mantissa_bits, bias;
  bool has_infinities;

  double value(int code) const {
    const double sign = code & 0x80 ? -1 : 1;
    const int mantissa = code & ((1 << mantissa_bits) - 1);
    const int exponent = (code & 0x7f) >> mantissa_bits;
    const int largest_exponent = 0x7f >> mantissa_bits;
    if (has_infinities && exponent == largest_exponent) return mantissa == 0 ? sign * kInf : kNaN;
    if (!has_infinities && (code & 0x7f) == 0x7f) return kNaN;
    const double fraction = std::ldexp(mantissa, -mantissa_bits);
    return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias)
                         : sign * std::ldexp(1 + fraction, exponent - bias);
  }

  // Codes of finite numbers >= 0, ascending.
  int num_finite() const { return has_infinities ? 0x7c : 0x7f; }
};

constexpr Definition kE4M3{3, 7, false}, kE5M2{2, 15, true};

template <typename Float8>
void expect_every_code_is_its_value(const Definition& definition) {
  for (int code = 0; code < 256; ++code) {
    const auto stored = Float8::from_bits(static_cast<uint8_t>(code));
    const float got = static_cast<float>(stored);
    const double expected = definition.value(code);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(got)) << code;
      EXPECT_TRUE(std::isnan(static_cast<float>(Float8(got)))) << code;
    } else {
      EXPECT_EQ(got, expected) << code;
      EXPECT_EQ(std::signbit(got), code >= 0x80) << code;
      EXPECT_EQ(Float8(got).bits, code) << "comes back as itself";
    }
  }
}

TEST(Float8, EveryCodeIsItsValue) {
  expect_every_code_is_its_value<float8_e4m3>(kE4M3);
  expect_every_code_is_its_value<float8_e5m2>(kE5M2);
  EXPECT_EQ(kE4M3.value(0x7e), 448);
  EXPECT_EQ(kE4M3.value(0x01), 0x1p-9);
  EXPECT_EQ(kE5M2.value(0x7b), 57344);
  EXPECT_EQ(kE5M2.value(0x01), 0x1p-16);
}

template <typename Float8>
void expect_rounds_to(double value, int code) {
  EXPECT_EQ(Float8(value).bits, code) << value;
  EXPECT_EQ(Float8(-value).bits, code | 0x80) << -value;
}

// Each number between two neighbours, up to the last bit of a double.
template <typename Float8>
void expect_rounds_to_nearest_even(const Definition& definition) {
  for (int code = 0; code + 1 < definition.num_finite(); ++code) {
    const double low = definition.value(code), high = definition.value(code + 1);
    const double tie = (low + high) / 2;
    expect_rounds_to<Float8>(tie, code % 2 == 0 ? code : code + 1);
    expect_rounds_to<Float8>(std::nextafter(tie, low), code);
    expect_rounds_to<Float8>(std::nextafter(tie, high), code + 1);
    expect_rounds_to<Float8>(low + (high - low) / 4, code);
    expect_rounds_to<Float8>(high - (high - low) / 4, code + 1);
  }
}

TEST(Float8, RoundsToNearestEven) {
  expect_rounds_to_nearest_even<float8_e4m3>(kE4M3);
  expect_rounds_to_nearest_even<float8_e5m2>(kE5M2);
}

template <typename Float8>
void expect_saturates(int largest_code) {
  const double largest = Float8::kLargest;
  const double float32_max = std::numeric_limits<float>::max();
  for (double value : {largest, std::nextafter(largest, kInf), largest * 1.03, largest * 1.07,
                       largest * 2, float32_max, std::numeric_limits<double>::max()}) {
    expect_rounds_to<Float8>(value, largest_code);
  }
}

TEST(Float8, SaturatesAtItsLargestNumber) {
  expect_saturates<float8_e4m3>(0x7e);
  expect_saturates<float8_e5m2>(0x7b);
}

TEST(Float8, InfinityStaysWhereThereIsOneAndSaturatesWhereThereIsNone) {
  expect_rounds_to<float8_e4m3>(kInf, 0x7e);
  expect_rounds_to<float8_e5m2>(kInf, 0x7c);
}

TEST(Float8, NaNStaysNaNWithItsSign) {
  for (double nan : {kNaN, std::bit_cast<double>(uint64_t{0x7ff0000000000001}),
                     static_cast<double>(std::bit_cast<float>(0x7fa12345u))}) {
    expect_rounds_to<float8_e4m3>(nan, 0x7f);
    expect_rounds_to<float8_e5m2>(nan, 0x7e);
  }
}

TEST(Float8, WhatIsTooSmallBecomesAZeroWithItsSign) {
  expect_rounds_to<float8_e4m3>(0.0, 0);
  expect_rounds_to<float8_e5m2>(0.0, 0);
  expect_rounds_to<float8_e4m3>(0x1p-10, 0);
  expect_rounds_to<float8_e5m2>(0x1p-17, 0);
  expect_rounds_to<float8_e4m3>(std::numeric_limits<double>::denorm_min(), 0);
  expect_rounds_to<float8_e5m2>(std::numeric_limits<double>::denorm_min(), 0);
}

// The nearest of all codes, by search.
template <typename Float8>
void expect_nearest(const Definition& definition, double value) {
  const double got = static_cast<float>(Float8(value));
  for (int code = 0; code < definition.num_finite(); ++code) {
    ASSERT_LE(std::abs(got - value), std::abs(definition.value(code) - value)) << value;
  }
}

TEST(Float8, RoundsRandomFloatsToTheNearestOfAllCodes) {
  std::mt19937 random(5);
  std::uniform_real_distribution<double> exponent(-20, 18);
  for (int i = 0; i < 20'000; ++i) {
    const auto value = static_cast<float>(std::exp2(exponent(random)));
    expect_nearest<float8_e4m3>(kE4M3, value);
    expect_nearest<float8_e5m2>(kE5M2, value);
  }
}

}  // namespace
}  // namespace pagefill
