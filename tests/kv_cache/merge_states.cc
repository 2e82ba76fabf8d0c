// merge_attention_states on states of any numbers: against float64, and the algebra of the merge.
// tests/spec has the merge of what attention returns.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "pagefill/attention.h"
#include "support/elements.h"
#include "support/problem.h"

namespace pagefill::testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kTokens = 5, kHeads = 3, kDim = 24, kRows = kTokens * kHeads;

// Half of the last place of a number of the dtype, relative to it.
double unit_roundoff(DType dtype) {
  return dtype == DType::kFloat32 ? 0x1p-24 : dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
}
// Half of the smallest number above 0.
double half_smallest(DType dtype) { return dtype == DType::kFloat16 ? 0x1p-25 : 0x1p-134; }

struct State {
  DType dtype = DType::kFloat32;
  std::vector<std::byte> output;
  std::vector<float> lse;

  explicit State(DType type, float fill_output = 0, float fill_lse = -kInf)
      : dtype(type), output(kRows * kDim * 4), lse(kRows, fill_lse) {
    for (int64_t i = 0; i < kRows * kDim; ++i) store(output.data(), dtype, i, fill_output);
  }
  double at(int64_t row, int64_t d) const { return load(output.data(), dtype, row * kDim + d); }
  TensorView output_view() const { return {output.data(), dtype, {kTokens, kHeads, kDim}}; }
  MutableTensorView output_view() { return {output.data(), dtype, {kTokens, kHeads, kDim}}; }
  TensorView lse_view() const { return {lse.data(), {kTokens, kHeads}}; }
  MutableTensorView lse_view() { return {lse.data(), {kTokens, kHeads}}; }
  friend bool operator==(const State& a, const State& b) {
    return a.output == b.output &&
           std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * sizeof(float)) == 0;
  }
};

State random_state(DType dtype, uint32_t seed) {
  State state(dtype);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < kRows * kDim; ++i) store(state.output.data(), dtype, i, normal(random));
  for (float& lse : state.lse) lse = 4 * normal(random);
  return state;
}

State merge(const State& a, const State& b) {
  State merged(a.dtype, 77, 77);
  const Status status =
      merge_attention_states(a.output_view(), a.lse_view(), b.output_view(), b.lse_view(),
                             {merged.output_view(), merged.lse_view()});
  EXPECT_TRUE(status.ok()) << status.message();
  return merged;
}

TEST(MergeStates, IsWithinOneRoundingOfFloat64) {
  for (DType dtype : kFloatDTypes) {
    const State a = random_state(dtype, 1), b = random_state(dtype, 2), merged = merge(a, b);
    for (int64_t row = 0; row < kRows; ++row) {
      const long double wa = std::exp(static_cast<long double>(a.lse[row]));
      const long double wb = std::exp(static_cast<long double>(b.lse[row]));
      for (int64_t d = 0; d < kDim; ++d) {
        const long double expected = (wa * a.at(row, d) + wb * b.at(row, d)) / (wa + wb);
        // The rounding to the dtype; that to float32, 2^-24, before it; and float64's own.
        const double terms = std::abs(a.at(row, d)) + std::abs(b.at(row, d));
        const double tolerance =
            (unit_roundoff(dtype) + (dtype == DType::kFloat32 ? 0 : 0x1p-24 * 1.01)) *
                std::abs(static_cast<double>(expected)) +
            half_smallest(dtype) + 0x1p-49 * terms;
        EXPECT_NEAR(merged.at(row, d), static_cast<double>(expected), tolerance)
            << dtype_name(dtype);
      }
      const auto lse = static_cast<double>(std::log(wa + wb));
      EXPECT_NEAR(merged.lse[row], lse, 0x1p-24 * std::abs(lse) + 0x1p-49);
    }
  }
}

TEST(MergeStates, DoesNotDependOnTheOrderOfTwo) {
  for (DType dtype : kFloatDTypes) {
    const State a = random_state(dtype, 1), b = random_state(dtype, 2);
    EXPECT_TRUE(merge(a, b) == merge(b, a)) << dtype_name(dtype);
  }
}

TEST(MergeStates, IsAssociativeWithinItsRoundings) {
  for (DType dtype : kFloatDTypes) {
    const State a = random_state(dtype, 1), b = random_state(dtype, 2), c = random_state(dtype, 3);
    const State left = merge(merge(a, b), c), right = merge(a, merge(b, c));
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t d = 0; d < kDim; ++d) {
        const double largest =
            std::max({std::abs(a.at(row, d)), std::abs(b.at(row, d)), std::abs(c.at(row, d))});
        // Two outputs were rounded on either side, and an lse, |lse| <= 32, to an absolute 2^-20 that
        // shifts the weights by as much.
        const double tolerance = (4 * unit_roundoff(dtype) + 4 * 0x1p-20) * largest;
        EXPECT_NEAR(left.at(row, d), right.at(row, d), tolerance) << dtype_name(dtype);
      }
      EXPECT_NEAR(left.lse[row], right.lse[row], 4 * 0x1p-20);
    }
  }
}

TEST(MergeStates, OfAStateWithItselfKeepsTheOutput) {
  const State a = random_state(DType::kFloat32, 1), twice = merge(a, a);
  EXPECT_EQ(twice.output, a.output);
  for (int64_t row = 0; row < kRows; ++row) {
    EXPECT_NEAR(twice.lse[row], a.lse[row] + std::log(2.0), 1e-5);
  }
}

TEST(MergeStates, TakesTheOtherStateBitForBitWhereOneHasNoKeys) {
  for (DType dtype : kFloatDTypes) {
    State a = random_state(dtype, 1);
    store(a.output.data(), dtype, 3, -0.0f);
    store(a.output.data(), dtype, 4, kNaN);
    const State nothing(dtype, kNaN, -kInf);
    EXPECT_TRUE(merge(a, nothing) == a) << dtype_name(dtype);
    EXPECT_TRUE(merge(nothing, a) == a) << dtype_name(dtype);
    EXPECT_TRUE(merge(nothing, nothing) == State(dtype)) << dtype_name(dtype);
  }
}

TEST(MergeStates, DecidesForEachRowAlone) {
  State a = random_state(DType::kFloat32, 1), b = random_state(DType::kFloat32, 2);
  const State both = merge(a, b);
  a.lse[1] = -kInf;
  b.lse[2] = -kInf;
  const State merged = merge(a, b);
  for (int64_t row = 0; row < kRows; ++row) {
    const State& expected = row == 1 ? b : row == 2 ? a : both;
    for (int64_t d = 0; d < kDim; ++d) EXPECT_EQ(merged.at(row, d), expected.at(row, d));
    EXPECT_EQ(merged.lse[row], expected.lse[row]);
  }
}

TEST(MergeStates, OverflowsWithNoWeightHoweverLarge) {
  for (float lse : {-3e38f, -1000.0f, 1000.0f, 3e38f}) {
    const State a(DType::kFloat32, 1, lse), b(DType::kFloat32, 3, lse);
    EXPECT_EQ(merge(a, b).at(0, 0), 2.0);
    const State c(DType::kFloat32, 5, -lse);
    EXPECT_EQ(merge(a, c).at(0, 0), lse > 0 ? 1.0 : 5.0);
    EXPECT_EQ(merge(a, c).lse[0], std::abs(lse));
  }
}

TEST(MergeStates, PassesOnAnLseThatIsNotANumber) {
  const State a(DType::kFloat32, 1, 2.0f);
  for (float lse : {kNaN, kInf}) {
    const State merged = merge(a, State(DType::kFloat32, 3, lse));
    EXPECT_TRUE(std::isnan(merged.at(0, 0)));
    EXPECT_TRUE(std::isnan(merged.lse[0]));
    const State turned = merge(State(DType::kFloat32, 3, lse), a);
    EXPECT_TRUE(std::isnan(turned.at(0, 0)));
    EXPECT_TRUE(std::isnan(turned.lse[0]));
  }
}

TEST(MergeStates, MayWriteOverEitherStateOrOneOfEach) {
  for (DType dtype : kFloatDTypes) {
    const State a = random_state(dtype, 1), b = random_state(dtype, 2), apart = merge(a, b);
    for (bool output_over_a : {true, false}) {
      for (bool lse_over_a : {true, false}) {
        State x = a, y = b;
        const AttentionOutput merged((output_over_a ? x : y).output_view(),
                                     (lse_over_a ? x : y).lse_view());
        ASSERT_TRUE(merge_attention_states(x.output_view(), x.lse_view(), y.output_view(),
                                           y.lse_view(), merged)
                        .ok());
        EXPECT_EQ((output_over_a ? x : y).output, apart.output);
        EXPECT_EQ((lse_over_a ? x : y).lse, apart.lse);
      }
    }
  }
}

TEST(MergeStates, NeedsNoMergedLse) {
  const State a = random_state(DType::kFloat32, 1), b = random_state(DType::kFloat32, 2);
  State merged(DType::kFloat32);
  ASSERT_TRUE(merge_attention_states(a.output_view(), a.lse_view(), b.output_view(), b.lse_view(),
                                     merged.output_view())
                  .ok());
  EXPECT_EQ(merged.output, merge(a, b).output);
}

TEST(MergeStates, TakesAnyStridesAndLeavesTheGaps) {
  const State a = random_state(DType::kFloat32, 1), b = random_state(DType::kFloat32, 2);
  const State expected = merge(a, b);
  // [heads, tokens, dim + 8] of floats, and an lse of [heads, tokens].
  constexpr int64_t kRowStride = kDim + 8;
  std::vector<float> output(kRows * kRowStride, -5.0f), lse(kRows, -5.0f);
  const MutableTensorView output_view(output.data(), {kTokens, kHeads, kDim},
                                      {kRowStride, kTokens * kRowStride, 1});
  const MutableTensorView lse_view(lse.data(), {kTokens, kHeads}, {1, kTokens});
  const Status status = merge_attention_states(a.output_view(), a.lse_view(), b.output_view(),
                                               b.lse_view(), {output_view, lse_view});
  // An lse's innermost stride is 1, like every tensor's; so it is handed over with heads innermost.
  EXPECT_EQ(status.message(), "merged_lse: expected an innermost stride of 1, got 5");
  std::vector<float> wide_lse(kTokens * 7, -5.0f);
  ASSERT_TRUE(merge_attention_states(a.output_view(), a.lse_view(), b.output_view(), b.lse_view(),
                                     {output_view, {wide_lse.data(), {kTokens, kHeads}, {7, 1}}})
                  .ok());
  for (int64_t token = 0; token < kTokens; ++token) {
    for (int64_t head = 0; head < kHeads; ++head) {
      const float* row = output.data() + (head * kTokens + token) * kRowStride;
      for (int64_t d = 0; d < kDim; ++d) EXPECT_EQ(row[d], expected.at(token * kHeads + head, d));
      for (int64_t d = kDim; d < kRowStride; ++d) EXPECT_EQ(row[d], -5.0f);
      EXPECT_EQ(wide_lse[token * 7 + head], expected.lse[token * kHeads + head]);
    }
    EXPECT_EQ(wide_lse[token * 7 + kHeads], -5.0f);
  }
}

TEST(MergeStates, RefusesMemoryThatOverlapsInPart) {
  std::vector<float> outputs(3 * kRows * kDim), lses(3 * kRows + 1);
  const auto output = [&](int64_t offset) {
    return MutableTensorView(outputs.data() + offset, {kTokens, kHeads, kDim});
  };
  const auto lse = [&](int64_t offset) {
    return MutableTensorView(lses.data() + offset, {kTokens, kHeads});
  };
  const MutableTensorView turned(outputs.data(), {kTokens, kHeads, kDim},
                                 {kDim, kTokens * kDim, 1});  // the same bytes in another order
  struct Overlap {
    MutableTensorView output, lse;
    const char* message;
  };
  const Overlap table[] = {
      {output(kDim),
       {},
       "merged_output: expected memory of its own, got memory that overlaps output_a"},
      {output(kRows * kDim + 8),
       {},
       "merged_output: expected memory of its own, got memory that overlaps output_b"},
      {turned, {}, "merged_output: expected memory of its own, got memory that overlaps output_a"},
      {output(2 * kRows * kDim), lse(1),
       "merged_lse: expected memory of its own, got memory that overlaps lse_a"},
      {output(2 * kRows * kDim), lse(kRows + 1),
       "merged_lse: expected memory of its own, got memory that overlaps lse_b"},
      {output(2 * kRows * kDim),
       {outputs.data() + 2 * kRows * kDim, {kTokens, kHeads}},
       "merged_lse: expected memory of its own, got memory that overlaps merged_output"},
  };
  for (const Overlap& overlap : table) {
    const Status status = merge_attention_states(output(0), lse(0), output(kRows * kDim),
                                                 lse(kRows), {overlap.output, overlap.lse});
    EXPECT_EQ(status.message(), overlap.message);
  }
}

}  // namespace
}  // namespace pagefill::testing
