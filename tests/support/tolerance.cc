#include "support/tolerance.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "pagefill/backend.h"

namespace pagefill::testing {
namespace {

struct Rounding {
  double unit;            // half the distance from 1 to the next number
  double half_subnormal;  // half the distance from 0 to the next number
};

Rounding rounding(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return {0x1p-8, 0x1p-134};
    case DType::kFloat16:
      return {0x1p-11, 0x1p-25};
    default:
      return {0x1p-24, 0x1p-150};
  }
}

}  // namespace

double output_tolerance(DType query_dtype, DType cache_dtype, double expected, int64_t context,
                        double largest_value) {
  const Rounding once = rounding(query_dtype);
  return std::max(once.unit * std::abs(expected), once.half_subnormal) +
         (is_quantised(cache_dtype) ? 4 : 3) * 0x1p-24 * std::sqrt(static_cast<double>(context)) *
             largest_value;
}

double score_tolerance(DType cache_dtype, int64_t head_dim, double score_size,
                       double largest_value) {
  const double roundings = is_quantised(cache_dtype) ? 5 : 4;
  return 0x1p-24 * (roundings + std::sqrt(static_cast<double>(head_dim)) / 2) * score_size *
         largest_value;
}

namespace {

// BackendInfo::half_weights, and what the weights of this call are rounded to.
double half_weight_unit(const CallReport& report, DType query_dtype, DType cache_dtype) {
  if (query_dtype == DType::kFloat32) return 0;
  if (cache_dtype != query_dtype && !is_quantised(cache_dtype)) return 0;
  for (const BackendInfo& backend : list_backends()) {
    if (report.backend != backend.name || !backend.half_weights) continue;
    return query_dtype == DType::kFloat16 && !is_quantised(cache_dtype) ? 0x1p-11 : 0x1p-8;
  }
  return 0;
}

}  // namespace

bool has_bfloat16_weights(const CallReport& report, DType query_dtype, DType cache_dtype) {
  if (query_dtype != DType::kBFloat16 || cache_dtype != DType::kBFloat16) return false;
  for (const BackendInfo& backend : list_backends()) {
    for (const TargetInfo& target : backend.targets) {
      if (report.target == target.name) return target.bfloat16_weights;
    }
  }
  return false;
}

double weight_tolerance(const CallReport& report, DType query_dtype, DType cache_dtype,
                        double largest_value) {
  const double unit = has_bfloat16_weights(report, query_dtype, cache_dtype)
                          ? 0x1p-8
                          : half_weight_unit(report, query_dtype, cache_dtype);
  return unit * largest_value;
}

double lse_tolerance(double expected) { return 1e-5 * std::max(1.0, std::abs(expected)); }

bool close(double got, double expected, double tolerance) {
  if (std::isnan(expected)) return std::isnan(got);
  if (std::isinf(expected)) return got == expected;
  return std::abs(got - expected) <= tolerance;
}

std::optional<std::string> discrepancy(const Results& results, const Expected& expected,
                                       const Problem& p, int num_roundings) {
  if (results.lse.size() != expected.lse.size()) return "another number of rows";
  int64_t row = 0;
  for (const Sequence& seq : p.sequences) {
    for (int64_t i = 0; i < seq.num_rows; ++i, ++row) {
      for (int64_t h = 0; h < p.num_q_heads; ++h) {
        const auto at = static_cast<size_t>(row * p.num_q_heads + h);
        const double lse_within =
            lse_tolerance(expected.lse[at]) +
            score_tolerance(p.cache_dtype, p.head_dim, expected.score_size[at], 1);
        if (!close(results.lse[at], expected.lse[at], lse_within)) {
          return fmt::format("lse of row {}, head {}: expected {}, got {} ({})", row, h,
                             expected.lse[at], results.lse[at], describe(p));
        }
        const double largest = expected.largest_value[at];
        // A rounding before the last one is of a number that may be as large as the largest value.
        const double earlier =
            (num_roundings - 1) * output_tolerance(p.query_dtype, p.cache_dtype, largest, 0, 0) +
            score_tolerance(p.cache_dtype, p.head_dim, expected.score_size[at], largest) +
            weight_tolerance(results.reports.empty() ? CallReport() : results.reports[0],
                             p.query_dtype, p.cache_dtype, largest);
        for (int64_t d = 0; d < p.v_head_dim; ++d) {
          const double want = expected.output[at * static_cast<size_t>(p.v_head_dim) + d];
          const double tolerance = earlier + output_tolerance(p.query_dtype, p.cache_dtype, want,
                                                              seq.context_len, largest);
          if (!close(results.at(row, h, d), want, tolerance)) {
            return fmt::format(
                "output of row {}, head {}, element {}: expected {} within {}, got {} ({})", row, h,
                d, want, tolerance, results.at(row, h, d), describe(p));
          }
        }
      }
    }
  }
  return std::nullopt;
}

void expect_close(const Results& results, const Expected& expected, const Problem& problem) {
  EXPECT_EQ(discrepancy(results, expected, problem), std::nullopt);
}

}  // namespace pagefill::testing
