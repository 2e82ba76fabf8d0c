#include "expected.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace pagefill::cli {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Score {
  double value = 0;
  double size = 0;  // as in Expected::score_size
};

// One key in the softmax of one row.
Score score(const Batch& b, int64_t s, int64_t row, int64_t q_head, int64_t kv_head, int64_t key) {
  const int64_t position = b.position(s, row), head_dim = b.query.shape[2];
  const int64_t q = (b.query_start(s) + row) * b.query.strides[0] + q_head * b.query.strides[1];
  const int64_t k = b.offset(b.key_cache, s, kv_head, key);
  const double scale =
      b.options.softmax_scale.value_or(1.0f / std::sqrt(static_cast<float>(head_dim)));
  const double key_scale = b.scale(b.options.key_scale, s, kv_head, key);
  double dot = 0, squares = 0;
  for (int64_t d = 0; d < head_dim; ++d) {
    const double product = load(b.query, q + d) * (key_scale * load(b.key_cache, k + d));
    dot += product;
    squares += product * product;
  }
  double value = scale * dot;
  const double size = std::abs(value) + std::abs(scale) * std::sqrt(squares);
  if (b.options.attn_logits_soft_cap) {
    const double cap = *b.options.attn_logits_soft_cap;
    value = cap * std::tanh(value / cap);
  }
  if (!b.visible_keys(s, position).contains(key)) value += b.options.mask_value;
  return {value, size};
}

// Subtracting the largest score keeps exp in range; a row of scores that are all -inf has no weights.
double weight(double score, double largest) {
  return largest == -kInfinity ? 0 : std::exp(score - largest);
}

struct RowResult {
  double* output;
  double& lse;
  double& score_size;
};

void evaluate_row(const Batch& b, int64_t s, int64_t row, int64_t q_head, RowResult result) {
  const int64_t kv_head = q_head / (b.num_q_heads() / b.num_kv_heads());
  const int64_t v_head_dim = b.value_cache.shape[3];
  const KeyRange keys = b.attended_keys(s, b.position(s, row));
  const double sink = b.options.sinks.given()
                          ? load(b.options.sinks, q_head * b.options.sinks.strides[0])
                          : -kInfinity;

  std::vector<Score> scores;
  double largest = sink;
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    scores.push_back(score(b, s, row, q_head, kv_head, j));
    largest = std::max(largest, scores.back().value);
    result.score_size = std::max(result.score_size, scores.back().size);
  }
  double sum = weight(sink, largest);
  for (const Score& x : scores) sum += weight(x.value, largest);

  result.lse = sum == 0 ? -kInfinity : largest + std::log(sum);
  if (sum == 0) return;
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    const double w = weight(scores[static_cast<size_t>(j - keys.begin)].value, largest) / sum;
    const int64_t v = b.offset(b.value_cache, s, kv_head, j);
    const double value_scale = b.scale(b.options.value_scale, s, kv_head, j);
    for (int64_t d = 0; d < v_head_dim; ++d) {
      result.output[d] += w * (value_scale * load(b.value_cache, v + d));
    }
  }
}

}  // namespace

Expected expected_in_float64(const Batch& b) {
  const int64_t num_q_heads = b.num_q_heads(), v_head_dim = b.value_cache.shape[3];
  const std::vector<int64_t> rows{b.query.shape[0], num_q_heads};
  Expected expected{Tensor::zeros(DType::kFloat64, {b.query.shape[0], num_q_heads, v_head_dim}),
                    Tensor::zeros(DType::kFloat64, rows), Tensor::zeros(DType::kFloat64, rows)};
  const auto output = expected.output.elements<double>();
  const auto lse = expected.lse.elements<double>();
  const auto score_size = expected.score_size.elements<double>();
  for (int64_t s = 0; s < b.num_seqs(); ++s) {
    for (int64_t row = 0; row < b.num_rows(s); ++row) {
      for (int64_t q_head = 0; q_head < num_q_heads; ++q_head) {
        const auto at = static_cast<size_t>((b.query_start(s) + row) * num_q_heads + q_head);
        evaluate_row(
            b, s, row, q_head,
            {output.data() + at * static_cast<size_t>(v_head_dim), lse[at], score_size[at]});
      }
    }
  }
  return expected;
}

double largest_value(const Batch& b, int64_t s) {
  const KeyRange keys = b.attended_keys(s);
  double largest = 0;
  for (int64_t kv_head = 0; kv_head < b.num_kv_heads(); ++kv_head) {
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      const int64_t v = b.offset(b.value_cache, s, kv_head, j);
      const double scale = b.scale(b.options.value_scale, s, kv_head, j);
      for (int64_t d = 0; d < b.value_cache.shape[3]; ++d) {
        const double value = std::abs(scale * load(b.value_cache, v + d));
        if (std::isfinite(value)) largest = std::max(largest, value);
      }
    }
  }
  return largest;
}

}  // namespace pagefill::cli
