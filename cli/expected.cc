#include "expected.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace pagefill::cli {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The score of one key in the softmax of one row.
double score(const Batch& b, int64_t s, int64_t row, int64_t q_head, int64_t kv_head, int64_t key) {
  const int64_t position = b.position(s, row), head_dim = b.query.shape[2];
  const int64_t q = (b.query_start(s) + row) * b.query.strides[0] + q_head * b.query.strides[1];
  const int64_t k = b.offset(b.key_cache, s, kv_head, key);
  double score = 0;
  for (int64_t d = 0; d < head_dim; ++d) score += load(b.query, q + d) * load(b.key_cache, k + d);
  score *= b.options.softmax_scale.value_or(1.0f / std::sqrt(static_cast<float>(head_dim)));
  if (b.options.attn_logits_soft_cap) {
    const double cap = *b.options.attn_logits_soft_cap;
    score = cap * std::tanh(score / cap);
  }
  return b.visible_keys(s, position).contains(key) ? score : score + b.options.mask_value;
}

// Subtracting the largest score keeps exp in range; a row of scores that are all -inf has no weights.
double weight(double score, double largest) {
  return largest == -kInfinity ? 0 : std::exp(score - largest);
}

void evaluate_row(const Batch& b, int64_t s, int64_t row, int64_t q_head, double* output,
                  double* lse) {
  const int64_t kv_head = q_head / (b.num_q_heads() / b.num_kv_heads());
  const int64_t v_head_dim = b.value_cache.shape[3];
  const KeyRange keys = b.attended_keys(s, b.position(s, row));
  const double sink = b.options.sinks.given()
                          ? load(b.options.sinks, q_head * b.options.sinks.strides[0])
                          : -kInfinity;

  std::vector<double> scores;
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    scores.push_back(score(b, s, row, q_head, kv_head, j));
  }
  double largest = sink;
  for (const double x : scores) largest = std::max(largest, x);
  double sum = weight(sink, largest);
  for (const double x : scores) sum += weight(x, largest);

  *lse = sum == 0 ? -kInfinity : largest + std::log(sum);
  if (sum == 0) return;
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    const double w = weight(scores[static_cast<size_t>(j - keys.begin)], largest) / sum;
    const int64_t v = b.offset(b.value_cache, s, kv_head, j);
    for (int64_t d = 0; d < v_head_dim; ++d) output[d] += w * load(b.value_cache, v + d);
  }
}

}  // namespace

Expected expected_in_float64(const Batch& b) {
  const int64_t num_q_heads = b.num_q_heads(), v_head_dim = b.value_cache.shape[3];
  Expected expected{Tensor::zeros(DType::kFloat64, {b.query.shape[0], num_q_heads, v_head_dim}),
                    Tensor::zeros(DType::kFloat64, {b.query.shape[0], num_q_heads})};
  double* const output = expected.output.elements<double>().data();
  double* const lse = expected.lse.elements<double>().data();
  for (int64_t s = 0; s < b.num_seqs(); ++s) {
    for (int64_t row = 0; row < b.num_rows(s); ++row) {
      for (int64_t q_head = 0; q_head < num_q_heads; ++q_head) {
        const int64_t state = (b.query_start(s) + row) * num_q_heads + q_head;
        evaluate_row(b, s, row, q_head, output + state * v_head_dim, lse + state);
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
      for (int64_t d = 0; d < b.value_cache.shape[3]; ++d) {
        const double value = std::abs(load(b.value_cache, v + d));
        if (std::isfinite(value)) largest = std::max(largest, value);
      }
    }
  }
  return largest;
}

}  // namespace pagefill::cli
