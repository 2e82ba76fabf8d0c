// How far a backend's result may be from the float64 oracle.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "support/oracle.h"
#include "support/problem.h"
#include "support/run.h"

namespace pagefill::testing {

// The result is rounded once to the query's dtype, with unit roundoff u = 2^-24, 2^-8, 2^-11, to
// within u |expected|, or half the smallest subnormal. Before that it is a float32 sum over
// `context` keys. Each of the three roundings behind every term (of its weight, in the sum of the
// weights, in the sum of the weighted values), and a fourth where the value has a scale, is a
// relative 2^-24; the errors of the terms add up as a random walk, and no term is larger than the
// largest value:
//
//     u |expected| + (3 or 4) * 2^-24 * sqrt(context) * max|v|
//
// The expectation is that of the dequantised cache, so that quantising adds nothing else.
double output_tolerance(DType query_dtype, DType cache_dtype, double expected, int64_t context,
                        double largest_value);

// What the scores add to it. A weight is off by the error of its score, relative: a dot product's
// head_dim additions round to half of 2^-24 of a partial sum each, again a random walk, and about
// four more roundings follow (softmax_scale, the base of the exponential, the cap, the maximum), and
// a fifth where the key has a scale.
// The sum of `context` terms hides this where the context is long, and does not where it is short
// or scores are large:
//
//     2^-24 * ((4 or 5) + sqrt(head_dim) / 2) * score_size * max|v|
double score_tolerance(DType cache_dtype, int64_t head_dim, double score_size,
                       double largest_value);

// Whether the call multiplied pairs of bfloat16 (TargetInfo::bfloat16_weights).
bool has_bfloat16_weights(const CallReport& report, DType query_dtype, DType cache_dtype);

// What weights that were rounded to bfloat16 (TargetInfo::bfloat16_weights) add to it.
double weight_tolerance(const CallReport& report, DType query_dtype, DType cache_dtype,
                        double largest_value);

// The log-sum-exp is the largest score and the log of a sum: 1e-5 relative, and absolute below 1,
// where the two cancel. Beyond that it is off by what the scores are off by (score_tolerance with a largest
// value of 1), which an lse near 0 of large scores does not show.
double lse_tolerance(double expected);

// One number against another: equal, both NaN, or within the tolerance.
bool close(double got, double expected, double tolerance);

// The first row whose output or lse is too far from the oracle's, or nothing. `num_roundings` of an
// output to the query's dtype lie behind it: 1, and one more for merged states.
std::optional<std::string> discrepancy(const Results& results, const Expected& expected,
                                       const Problem& problem, int num_roundings = 1);

// Fails the test where there is one.
void expect_close(const Results& results, const Expected& expected, const Problem& problem);

}  // namespace pagefill::testing
