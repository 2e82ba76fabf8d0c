// Promise 1, inside the context: infinities, NaN, -0.0 and denormals behave as in the formula, and
// what a row does not see does not touch it.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/oracle.h"
#include "support/run.h"
#include "support/tolerance.h"

namespace pagefill::testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

enum class Part { kKeys, kValues };

void set_token(Problem& p, int64_t sequence, int64_t key, Part part, float value) {
  Sequence& seq = p.sequences[sequence];
  std::vector<float>& data = part == Part::kKeys ? seq.keys : seq.values;
  const int64_t size = p.num_kv_heads * (part == Part::kKeys ? p.head_dim : p.v_head_dim);
  for (int64_t i = 0; i < size; ++i) data[key * size + i] = value;
}

void expect_rows_equal(const Results& got, const Results& expected, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t h = 0; h < got.num_q_heads; ++h) {
      const auto at = static_cast<size_t>(row * got.num_q_heads + h);
      ASSERT_EQ(got.lse[at], expected.lse[at]) << "row " << row << ", head " << h;
      for (int64_t d = 0; d < got.v_head_dim; ++d) {
        ASSERT_EQ(got.at(row, h, d), expected.at(row, h, d)) << "row " << row << ", head " << h;
      }
    }
  }
}

// With a scale of 0, products below 0 are scores of -0: in a segment behind the first one too, whose maximum then is
// not to be taken for known.
TEST(SpecialNumbers, ScoresOfMinus0Count) {
  for (DType dtype : kFloatDTypes) {
    Problem problem = random_problem({.sequences = {{40, 2300}, {2, 2300}},
                                      .head_dim = 64,
                                      .query_dtype = dtype,
                                      .cache_dtype = dtype});
    for (Sequence& sequence : problem.sequences) {
      for (float& x : sequence.query) x = round_to(dtype, std::abs(x) + 0.125f);
      for (float& x : sequence.keys) x = round_to(dtype, -std::abs(x) - 0.125f);
    }
    problem.options.softmax_scale = 0.0f;
    const Expected expected = oracle(problem);
    for (const Where& where : all_targets()) {
      SCOPED_TRACE(describe(where) + ", " + dtype_name(dtype));
      expect_close(run(problem, {}, where), expected, problem);
    }
  }
}

TEST(SpecialNumbers, ALaterTokenOfTheChunkTouchesNoEarlierRow) {
  // The chunk's 40 tokens stand at 90..129, across KV tiles that end at 128; the token at 110 is
  // ill.
  for (DType dtype : kFloatDTypes) {
    const Problem healthy =
        random_problem({.sequences = {{40, 130}}, .query_dtype = dtype, .cache_dtype = dtype});
    for (const Where& where : all_targets()) {
      const Results expected = run(healthy, {}, where);
      for (Part part : {Part::kKeys, Part::kValues}) {
        for (float value : {kNaN, kInf, -kInf}) {
          SCOPED_TRACE(describe(where) + ", " + dtype_name(dtype) + ", value " +
                       std::to_string(value));
          Problem ill = healthy;
          set_token(ill, 0, 110, part, value);
          expect_rows_equal(run(ill, {}, where), expected, 0, 20);
        }
      }
    }
  }
}

TEST(SpecialNumbers, ATokenBeforeTheWindowTouchesNoRow) {
  // Window 10: the token at 110 is seen by the rows at 110..119, and by no other of 90..129.
  Problem healthy = random_problem({.sequences = {{40, 130}}});
  healthy.options.sliding_window = 10;
  for (const Where& where : all_targets()) {
    const Results expected = run(healthy, {}, where);
    for (Part part : {Part::kKeys, Part::kValues}) {
      for (float value : {kNaN, kInf, -kInf}) {
        SCOPED_TRACE(describe(where) + ", value " + std::to_string(value));
        Problem ill = healthy;
        set_token(ill, 0, 110, part, value);
        const Results got = run(ill, {}, where);
        expect_rows_equal(got, expected, 0, 20);
        expect_rows_equal(got, expected, 30, 40);
      }
    }
  }
}

TEST(SpecialNumbers, AVisibleInfinityOrNaNInValuesGivesWhatTheFormulaGives) {
  for (float value : {kInf, -kInf, kNaN}) {
    Problem problem = random_problem({.sequences = {{40, 130}, {1, 70}}});
    set_token(problem, 0, 100, Part::kValues, value);
    set_token(problem, 1, 3, Part::kValues, value);
    const Expected expected = oracle(problem);
    for (const Where& where : all_targets()) {
      SCOPED_TRACE(describe(where) + ", value " + std::to_string(value));
      const Results got = run(problem, {}, where);
      int64_t touched = 0;
      for (int64_t row = 0; row < got.num_rows(); ++row) {
        for (int64_t h = 0; h < got.num_q_heads; ++h) {
          for (int64_t d = 0; d < got.v_head_dim; ++d) {
            const auto at = static_cast<size_t>((row * got.num_q_heads + h) * got.v_head_dim + d);
            if (std::isfinite(expected.output[at])) continue;
            ASSERT_TRUE(close(got.at(row, h, d), expected.output[at], 0))
                << "row " << row << ": expected " << expected.output[at] << ", got "
                << got.at(row, h, d);
            ++touched;
          }
        }
      }
      EXPECT_EQ(touched, (30 + 1) * got.num_q_heads * got.v_head_dim);
    }
  }
}

TEST(SpecialNumbers, AVisibleNaNInKeysMakesItsRowsNaN) {
  Problem problem = random_problem({.sequences = {{3, 80}, {1, 1}}});
  set_token(problem, 0, 20, Part::kKeys, kNaN);
  set_token(problem, 1, 0, Part::kKeys, kNaN);
  for (const Where& where : all_targets()) {
    SCOPED_TRACE(describe(where));
    const Results got = run(problem, {}, where);
    for (int64_t row = 0; row < got.num_rows(); ++row) {
      for (int64_t h = 0; h < got.num_q_heads; ++h) {
        EXPECT_TRUE(std::isnan(got.at(row, h, 0))) << "row " << row << ", head " << h;
        EXPECT_TRUE(std::isnan(got.lse[row * got.num_q_heads + h])) << "row " << row;
      }
    }
  }
}

TEST(SpecialNumbers, KeysThatScoreMinusInfinityWeighNothing) {
  // Queries are positive, so a key of -inf scores -inf. Whole KV tiles and a whole segment of such
  // keys come first, where a running maximum has nothing to stand on yet.
  for (int64_t num_ill : {1, 64, 70, 128, 1024, 1100}) {
    Problem problem = random_problem({.sequences = {{3, num_ill + 9}}, .head_dim = 16});
    for (float& x : problem.sequences[0].query) x = std::abs(x) + 0.125f;
    for (int64_t key = 0; key < num_ill; ++key) set_token(problem, 0, key, Part::kKeys, -kInf);
    const Expected expected = oracle(problem);
    for (const Where& where : all_targets()) {
      SCOPED_TRACE(describe(where) + ", " + std::to_string(num_ill) + " keys");
      expect_close(run(problem, {}, where), expected, problem);
    }
  }
}

// Every row sees a value that is not finite at a weight of 0: 0 * inf is a NaN.
void expect_nan_rows(const Problem& problem, const Where& where) {
  SCOPED_TRACE(describe(where) + ", " + describe(problem));
  const Expected expected = oracle(problem);
  const Results got = run(problem, {}, where);
  for (size_t i = 0; i < got.lse.size(); ++i) {
    ASSERT_NEAR(got.lse[i], expected.lse[i], lse_tolerance(expected.lse[i])) << i;
  }
  for (int64_t row = 0; row < got.num_rows(); ++row) {
    for (int64_t d = 0; d < got.v_head_dim; ++d) ASSERT_TRUE(std::isnan(got.at(row, 0, d))) << row;
  }
}

TEST(SpecialNumbers, AWeightOfZeroMakesNothingOfAnInfiniteValue) {
  // As above, whole segments of keys score -inf; now one of them has a value that is not finite.
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (int64_t num_rows : {1, 20}) {
      for (float value : {kInf, kNaN}) {
        Problem problem = random_problem({.sequences = {{num_rows, 1100}, {1, 2060}},
                                          .head_dim = 16,
                                          .query_dtype = dtype,
                                          .cache_dtype = dtype});
        for (int64_t s : {0, 1}) {
          Sequence& seq = problem.sequences[s];
          for (float& x : seq.query) x = round_to(dtype, std::abs(x) + 0.125f);
          // The first segment of the one, the second of the other.
          const int64_t begin = s * 1024;
          for (int64_t key = begin; key < begin + 1024; ++key)
            set_token(problem, s, key, Part::kKeys, -kInf);
          set_token(problem, s, begin + 5, Part::kValues, value);
        }
        for (Where where : all_targets()) {
          expect_nan_rows(problem, where);
          where.threads = 4;
          if (where.backend == "cpu") expect_nan_rows(problem, where);
        }
      }
    }
  }
}

TEST(SpecialNumbers, ASinkThatWeighsAllLeavesANaN) {
  Problem problem = random_problem({.sequences = {{20, 150}, {1, 1100}}});
  problem.sinks.assign(static_cast<size_t>(problem.num_q_heads), 1000.0f);
  for (int64_t s : {0, 1}) set_token(problem, s, 5, Part::kValues, kNaN);
  for (const Where& where : all_targets()) expect_nan_rows(problem, where);
  // The same where no key weighs anything at all.
  for (int64_t s : {0, 1}) {
    Sequence& seq = problem.sequences[s];
    for (float& x : seq.query) x = std::abs(x) + 0.125f;
    seq.keys.assign(seq.keys.size(), -kInf);
  }
  for (const Where& where : all_targets()) expect_nan_rows(problem, where);
}

TEST(SpecialNumbers, DenormalsInKeysAreNotFlushedToZero) {
  // float32 keys below 2^-126. softmax_scale times a query stays below 2^128, so that a backend may
  // multiply these two first.
  Problem problem = random_problem({.sequences = {{5, 90}}, .head_dim = 8});
  for (float& x : problem.sequences[0].query) x = std::ldexp(x, 62);
  for (float& x : problem.sequences[0].keys) x = std::ldexp(x, -127);
  problem.options.softmax_scale = 0x1p62f;
  const Expected expected = oracle(problem);
  for (const Where& where : all_targets()) {
    SCOPED_TRACE(describe(where));
    expect_close(run(problem, {}, where), expected, problem);
  }
}

TEST(SpecialNumbers, DenormalsInValuesAreNotFlushedToZero) {
  // All values of a context are one and the same denormal of the dtype, so the output is that
  // number.
  for (DType dtype : kFloatDTypes) {
    Problem problem = random_problem(
        {.sequences = {{5, 90}, {1, 1}}, .query_dtype = dtype, .cache_dtype = dtype});
    const float smallest = dtype == DType::kFloat16    ? 0x1p-24f
                           : dtype == DType::kBFloat16 ? 0x1p-133f
                                                       : 0x1p-149f;
    const float value = smallest * 100;
    for (Sequence& seq : problem.sequences) seq.values.assign(seq.values.size(), value);
    for (const Where& where : all_targets()) {
      SCOPED_TRACE(describe(where) + ", " + dtype_name(dtype));
      const Results got = run(problem, {}, where);
      // The instructions for pairs of bfloat16 take denormals as 0.
      const bool flushes = has_bfloat16_weights(got.reports[0], dtype, dtype);
      for (int64_t row = 0; row < got.num_rows(); ++row) {
        if (flushes) {
          EXPECT_EQ(got.at(row, 0, 0), 0) << "row " << row;
          continue;
        }
        // In float32 each of 90 products rounds by up to half the smallest number. bfloat16's
        // denormals are 2^16 of those, float16's are normal in float32, and one key alone has
        // weight 1: exact.
        const double tolerance = dtype == DType::kFloat32 && row < 5 ? 45.0 * smallest : 0;
        EXPECT_NEAR(got.at(row, 0, 0), value, tolerance) << "row " << row;
        EXPECT_GT(got.at(row, 0, 0), 0) << "row " << row;
      }
    }
  }
}

TEST(SpecialNumbers, NegativeZerosAreZeros) {
  Problem problem = random_problem({.sequences = {{6, 100}}});
  problem.sequences[0].keys.assign(problem.sequences[0].keys.size(), -0.0f);
  const Expected expected = oracle(problem);
  Problem zeros = problem;
  zeros.sequences[0].values.assign(zeros.sequences[0].values.size(), -0.0f);
  for (const Where& where : all_targets()) {
    SCOPED_TRACE(describe(where));
    expect_close(run(problem, {}, where), expected, problem);
    const Results got = run(zeros, {}, where);
    for (int64_t row = 0; row < 6; ++row) EXPECT_EQ(got.at(row, 0, 0), 0.0) << "row " << row;
  }
}

TEST(SpecialNumbers, LargeScoresNeitherOverflowNorLoseTheLargest) {
  // Scores up to several thousand: exp of them overflows float64 as well.
  Problem problem = random_problem({.sequences = {{6, 140}}});
  for (float& x : problem.sequences[0].keys) x *= 512;
  for (const Where& where : all_targets()) {
    SCOPED_TRACE(describe(where));
    const Expected expected = oracle(problem);
    const Results got = run(problem, {}, where);
    for (size_t i = 0; i < got.lse.size(); ++i) {
      EXPECT_NEAR(got.lse[i], expected.lse[i], lse_tolerance(expected.lse[i])) << i;
    }
    for (int64_t row = 0; row < 6; ++row) {
      EXPECT_TRUE(std::isfinite(got.at(row, 0, 0))) << "row " << row;
    }
  }
}

void expect_the_largest(const Problem& problem) {
  const Expected expected = oracle(problem);
  for (const Where& where : all_targets()) {
    SCOPED_TRACE(describe(where));
    const Results got = run(problem, {}, where);
    for (size_t i = 0; i < got.lse.size(); ++i) {
      ASSERT_NEAR(got.lse[i], expected.lse[i], std::abs(expected.lse[i]) * 0x1p-16) << i;
    }
    for (size_t i = 0; i < expected.output.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      const double value = got.at(at / got.v_head_dim / got.num_q_heads,
                                  at / got.v_head_dim % got.num_q_heads, at % got.v_head_dim);
      ASSERT_NEAR(value, expected.output[i], std::abs(expected.output[i]) * 0x1p-7) << i;
    }
  }
}

TEST(SpecialNumbers, ScoresOfAnyFiniteSizeLeaveTheLargestItsWeight) {
  // Far beyond 2^24, float32 scores are further apart than the range of a weight's exponent.
  for (DType dtype : kFloatDTypes) {
    for (const Lengths lengths : {Lengths{1, 140}, Lengths{20, 140}, Lengths{1, 2100}}) {
      Problem problem = random_problem({.sequences = {lengths, {1, 30}},
                                        .head_dim = 16,
                                        .query_dtype = dtype,
                                        .cache_dtype = dtype});
      // Queries are positive; all rows see the first one's key, and no other comes near it.
      for (Sequence& seq : problem.sequences) {
        for (float& x : seq.query) x = round_to(dtype, std::abs(x) + 0.125f);
      }
      for (int log2_scale : {14, 18, 20, 22, 25, 27, 31}) {
        for (float sign : {1.0f, -1.0f}) {
          for (float mask_value : {kDefaultMaskValue, -3.0f}) {
            SCOPED_TRACE(std::string(dtype_name(dtype)) + ", " + describe(problem) + ", scale 2^" +
                         std::to_string(log2_scale));
            problem.options.softmax_scale = std::ldexp(sign, log2_scale);
            problem.options.mask_value = mask_value;
            for (int64_t s = 0; s < 2; ++s) {
              set_token(problem, s, problem.sequences[s].position(0), Part::kKeys, sign * 8);
            }
            expect_the_largest(problem);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
