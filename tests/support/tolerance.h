// How far a backend's result may be from the float64 oracle.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "support/oracle.h"
#include "support/problem.h"
#include "support/run.h"

namespace pagefill::testing {

// A row's softmax and its weighted sum of values are float32 sums over `context` keys. Each of the three
// sums behind an output (the scores' dot products, the weights, the weighted values) rounds to within a
// relative 2^-24 at every step; the errors of n steps add up as a random walk, sqrt(n) of them, and none
// weighs more than the largest value. The result is then rounded once to the query's dtype:
//
//     u |expected| + 3 * 2^-24 * sqrt(context) * max|v|,   u = 2^-24, 2^-8, 2^-11
//
// and half the smallest subnormal of the dtype where the result is smaller than its normal numbers.
double output_tolerance(DType query_dtype, double expected, int64_t context, double largest_value);

// The log-sum-exp is the largest score and the log of a sum: 1e-5 relative, and absolute below 1, where
// the two cancel.
double lse_tolerance(double expected);

// One number against another: equal, both NaN, or within the tolerance.
bool close(double got, double expected, double tolerance);

// The first row whose output or lse is too far from the oracle's, or nothing. `num_roundings` of an output
// to the query's dtype lie behind it: 1, and one more for merged states.
std::optional<std::string> discrepancy(const Results& results, const Expected& expected,
                                       const Problem& problem, int num_roundings = 1);

// Fails the test where there is one.
void expect_close(const Results& results, const Expected& expected, const Problem& problem);

}  // namespace pagefill::testing
