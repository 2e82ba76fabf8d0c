#include "accuracy.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace pagefill::cli {
namespace {

// What rounding a value to the dtype once may cost.
double rounding(DType dtype, double value) {
  struct Format {
    double unit_roundoff, half_least_subnormal;
  };
  const Format format = dtype == DType::kFloat16    ? Format{0x1p-11, 0x1p-25}
                        : dtype == DType::kBFloat16 ? Format{0x1p-8, 0x1p-134}
                                                    : Format{0x1p-24, 0x1p-150};
  return std::max(format.unit_roundoff * std::abs(value), format.half_least_subnormal);
}

// The value in the dtype: infinite where it is too large for it.
double rounded(DType dtype, double value) {
  const auto nearest = static_cast<float>(value);
  if (dtype == DType::kFloat16) return static_cast<float>(float16(nearest));
  if (dtype == DType::kBFloat16) return static_cast<float>(bfloat16(nearest));
  return nearest;
}

// 0 for equal infinities and for two NaNs, infinite where only one of the two is NaN or infinite.
double distance(DType dtype, double got, double expected) {
  if (std::isnan(got) && std::isnan(expected)) return 0;
  if (got == rounded(dtype, expected) && std::isinf(got)) return 0;
  const double error = std::abs(got - expected);
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

class Measurement {
 public:
  Measurement(const Batch& batch, const State& state, const Expected& expected, double of_weights)
      : batch_(batch),
        of_weights_(of_weights),
        output_(state.output.view()),
        lse_(state.lse.view()),
        expected_output_(expected.output.view()),
        expected_lse_(expected.lse.view()),
        score_size_(expected.score_size.view()) {}

  Accuracy run() {
    for (int64_t s = 0; s < batch_.num_seqs(); ++s) {
      const double largest = largest_value(batch_, s);
      const double scaling = is_quantised(batch_.key_cache.dtype) ? 1 : 0;
      const double of_sums = (3 + scaling) * 0x1p-24 *
                                 std::sqrt(static_cast<double>(batch_.context_len(s))) * largest +
                             of_weights_ * largest;
      const double of_scores =
          0x1p-24 * (4 + scaling + std::sqrt(static_cast<double>(batch_.query.shape[2])) / 2) *
          largest;
      for (int64_t t = batch_.query_start(s); t < batch_.query_start(s + 1); ++t) {
        for (int64_t h = 0; h < batch_.num_q_heads(); ++h) measure_state(t, h, of_sums, of_scores);
      }
    }
    return accuracy_;
  }

 private:
  void measure_state(int64_t token, int64_t q_head, double of_sums, double of_scores) {
    const int64_t state = token * batch_.num_q_heads() + q_head;
    const int64_t v_head_dim = output_.shape[2];
    const double size = score_size_.given() ? load(score_size_, state) : 0;
    const double before_rounding = of_sums + (std::isfinite(size) ? of_scores * size : 0);
    for (int64_t d = 0; d < v_head_dim; ++d) {
      const double want = load(expected_output_, state * v_head_dim + d);
      const double tolerance =
          before_rounding + rounding(output_.dtype, std::isfinite(want) ? want : 0);
      measure_element({token, q_head, d}, load(output_, state * v_head_dim + d), want, tolerance);
    }
    measure_lse(token, q_head, load(lse_, state), load(expected_lse_, state));
  }

  void measure_element(std::array<int64_t, 3> index, double got, double want, double tolerance) {
    const double error = distance(output_.dtype, got, want);
    if (error / tolerance > worst_share_) {
      worst_share_ = error / tolerance;
      accuracy_.error = error;
      accuracy_.tolerance = tolerance;
    }
    if (!(error <= tolerance)) {
      fail(fmt::format("output[{}]: expected {} within {:.1e}, got {}", fmt::join(index, ", "),
                       want, tolerance, got));
    }
  }

  void measure_lse(int64_t token, int64_t q_head, double got, double want) {
    const double scale = std::isfinite(want) ? std::max(1.0, std::abs(want)) : 1.0;
    const double error = distance(DType::kFloat32, got, want) / scale;
    accuracy_.lse_error = std::max(accuracy_.lse_error, error);
    if (!(error <= kLseTolerance)) {
      fail(fmt::format("lse[{}, {}]: expected {} within a relative {:.0e}, got {}", token, q_head,
                       want, kLseTolerance, got));
    }
  }

  void fail(std::string what) {
    if (accuracy_.failure.empty()) accuracy_.failure = std::move(what);
  }

  const Batch& batch_;
  const double of_weights_;  // of the largest value
  const TensorView output_, lse_, expected_output_, expected_lse_, score_size_;
  double worst_share_ = -1;  // of its tolerance
  Accuracy accuracy_;
};

// What a weight is off by, relative, beyond float32.
double weight_unit(const Batch& batch, Weights weights) {
  const DType query = batch.query.dtype, cache = batch.key_cache.dtype;
  const bool is_half = query != DType::kFloat32;
  if (weights == Weights::kBFloat16Target && query == DType::kBFloat16 && cache == query) {
    return 0x1p-8;
  }
  if (weights == Weights::kHalfBackend && is_half && (cache == query || is_quantised(cache))) {
    return cache == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
  }
  return 0;
}

}  // namespace

Accuracy measure_accuracy(const Batch& batch, const State& state, const Expected& expected,
                          Weights weights) {
  return Measurement(batch, state, expected, weight_unit(batch, weights)).run();
}

}  // namespace pagefill::cli
