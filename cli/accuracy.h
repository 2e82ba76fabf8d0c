// How far a result lies from its float64 expectation, and how far it may.
#pragma once

#include <string>

#include "batch.h"
#include "expected.h"

namespace pagefill::cli {

struct Accuracy {
  // Of the element that comes closest to its tolerance, or is furthest beyond it.
  double error = 0;
  double tolerance = 0;
  double lse_error = 0;  // largest; relative, but absolute where |lse| < 1
  std::string failure;   // the first thing wrong; empty: all within tolerance
};

enum class Weights { kFloat32, kBFloat16Target, kHalfBackend };

inline constexpr double kLseTolerance = 1e-5;

// An element may be off by one rounding of query's dtype and 3 * 2^-24 * sqrt(context_len) of the largest
// value that its sequence attends to: the sums are float32 and about as long as the context, and their
// rounding errors add up as a random walk. Where score_size is given, the scores' own errors come on top,
// 2^-24 * (4 + sqrt(head_dim) / 2) * score_size of the largest value: a weight is off, relatively, by the
// error of its score, a walk of head_dim additions and about four roundings more, and a context of a few
// keys does not hide that. With a quantised cache the expectation is that of the dequantised one, which is
// exact; a scale is one rounding more, of a score and of a weighted value: 4 and 5 in place of 3 and 4.
// Weights that the target rounds to bfloat16 (TargetInfo::bfloat16_weights), or the backend to 16 bits
// (BackendInfo::half_weights), add 2^-8 of the largest value, or 2^-11 where they are float16.
Accuracy measure_accuracy(const Batch& batch, const State& state, const Expected& expected,
                          Weights weights = Weights::kFloat32);

}  // namespace pagefill::cli
