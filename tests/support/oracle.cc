#include "support/oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pagefill::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Weighted {
  int64_t key;
  double score;
  double size;
};

struct Dot {
  double sum = 0;
  double sum_of_squares = 0;  // of the products
};

Dot dot(const float* query, const float* key, double key_scale, int64_t size) {
  Dot result;
  for (int64_t d = 0; d < size; ++d) {
    const double product = query[d] * (key_scale * key[d]);
    result.sum += product;
    result.sum_of_squares += product * product;
  }
  return result;
}

// The keys that take part in a row's softmax, with their scores.
std::vector<Weighted> scores_of_row(const Problem& p, const Sequence& seq, int64_t row,
                                    int64_t head) {
  const AttentionOptions& options = p.options;
  const double scale =
      options.softmax_scale.value_or(1.0f / std::sqrt(static_cast<float>(p.head_dim)));
  const int64_t kv_head = head / (p.num_q_heads / p.num_kv_heads);
  const int64_t position = seq.position(row);
  const float* query = &seq.query[(row * p.num_q_heads + head) * p.head_dim];

  std::vector<Weighted> scores;
  if (position < 0) return scores;
  for (int64_t j = seq.kv_start; j < seq.context_len; ++j) {
    const bool causal = j <= position;
    const bool in_window = !options.sliding_window || position - j < *options.sliding_window;
    const bool visible = causal && in_window;
    if (!visible && options.mask_value <= -1e4f) continue;
    const Dot qk = dot(query, &seq.keys[(j * p.num_kv_heads + kv_head) * p.head_dim],
                       p.scale_at(p.key_scale, seq.key_scales, j, kv_head), p.head_dim);
    double s = scale * qk.sum;
    const double size = std::abs(s) + std::abs(scale) * std::sqrt(qk.sum_of_squares);
    if (options.attn_logits_soft_cap) {
      const double cap = *options.attn_logits_soft_cap;
      s = cap * std::tanh(s / cap);
    }
    scores.push_back({j, visible ? s : s + options.mask_value, size});
  }
  return scores;
}

double log_sum_exp(const std::vector<Weighted>& scores, const float* sink) {
  double max = sink != nullptr ? *sink : -kInfinity;
  for (const Weighted& w : scores) {
    if (std::isnan(w.score)) return w.score;
    max = std::max(max, w.score);
  }
  if (max == -kInfinity) return -kInfinity;
  double sum = sink != nullptr ? std::exp(*sink - max) : 0;
  for (const Weighted& w : scores) sum += std::exp(w.score - max);
  return max + std::log(sum);
}

}  // namespace

Expected oracle(const Problem& p) {
  Expected expected;
  for (const Sequence& seq : p.sequences) {
    for (int64_t row = 0; row < seq.num_rows; ++row) {
      for (int64_t head = 0; head < p.num_q_heads; ++head) {
        const std::vector<Weighted> scores = scores_of_row(p, seq, row, head);
        const double lse = log_sum_exp(scores, p.sinks.empty() ? nullptr : &p.sinks[head]);
        const int64_t kv_head = head / (p.num_q_heads / p.num_kv_heads);
        std::vector<double> out(static_cast<size_t>(p.v_head_dim));
        double largest = 0, score_size = 0;
        for (const Weighted& w : scores) {
          score_size = std::max(score_size, w.size);
          const double weight = lse == -kInfinity ? 0 : std::exp(w.score - lse);
          const float* stored = &seq.values[(w.key * p.num_kv_heads + kv_head) * p.v_head_dim];
          const double scale = p.scale_at(p.value_scale, seq.value_scales, w.key, kv_head);
          for (int64_t d = 0; d < p.v_head_dim; ++d) {
            const double value = scale * stored[d];
            out[d] += weight * value;
            largest = std::max(largest, std::abs(value));
          }
        }
        expected.output.insert(expected.output.end(), out.begin(), out.end());
        expected.lse.push_back(lse);
        expected.largest_value.push_back(largest);
        expected.score_size.push_back(score_size);
      }
    }
  }
  return expected;
}

}  // namespace pagefill::testing
