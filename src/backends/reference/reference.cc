#include "backends/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace pagefill {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double load(const TensorView& view, int64_t offset) {
  switch (view.dtype) {
    case DType::kBFloat16:
      return static_cast<float>(static_cast<const bfloat16*>(view.data)[offset]);
    case DType::kFloat16:
      return static_cast<float>(static_cast<const float16*>(view.data)[offset]);
    case DType::kInt8:
      return static_cast<const int8_t*>(view.data)[offset];
    case DType::kFloat8E4M3:
      return static_cast<float>(static_cast<const float8_e4m3*>(view.data)[offset]);
    case DType::kFloat8E5M2:
      return static_cast<float>(static_cast<const float8_e5m2*>(view.data)[offset]);
    default:
      return static_cast<const float*>(view.data)[offset];
  }
}

// Rounds once, from double: a first rounding to float32 could turn a near-tie into a tie. Rounding to odd
// keeps the sticky bit, so that the second rounding, to nearest even, is right.
float round_to_odd(double value) {
  const float nearest = static_cast<float>(value);
  if (!std::isfinite(nearest) || static_cast<double>(nearest) == value) return nearest;
  const float toward_zero = std::abs(static_cast<double>(nearest)) > std::abs(value)
                                ? std::nextafter(nearest, 0.0f)
                                : nearest;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(toward_zero) | 1u);
}

void store(const MutableTensorView& view, int64_t offset, double value) {
  switch (view.dtype) {
    case DType::kBFloat16:
      static_cast<bfloat16*>(view.data)[offset] = bfloat16(round_to_odd(value));
      break;
    case DType::kFloat16:
      static_cast<float16*>(view.data)[offset] = float16(round_to_odd(value));
      break;
    default:
      static_cast<float*>(view.data)[offset] = static_cast<float>(value);
  }
}

// One query of one head.
class Row {
 public:
  Row(const Problem& p, int64_t s, const SequenceGeometry& seq, int64_t i, int64_t q_head)
      : p_(p),
        s_(s),
        seq_(seq),
        q_head_(q_head),
        kv_head_(q_head / p.group),
        token_(seq.query_start + i),
        position_(seq.position(i)),
        keys_(p.mask.attended(seq, position_)) {}

  void run() {
    std::vector<double> scores(static_cast<size_t>(keys_.size()));
    double max = p_.sinks.given() ? p_.sink(q_head_) : -kInfinity;
    for (int64_t j = keys_.begin; j < keys_.end; ++j) {
      const double s = score(j);
      scores[j - keys_.begin] = s;
      max = std::max(max, s);
    }
    double sum = p_.sinks.given() ? weight(p_.sink(q_head_), max) : 0;
    std::vector<double> out(static_cast<size_t>(p_.v_head_dim));
    for (int64_t j = keys_.begin; j < keys_.end; ++j) {
      const double w = weight(scores[j - keys_.begin], max);
      const int64_t value = p_.slot_offset(p_.value_cache, s_, seq_, kv_head_, j);
      const double scale = p_.slot_scale(p_.value_scale, s_, seq_, kv_head_, j);
      sum += w;
      for (int64_t d = 0; d < p_.v_head_dim; ++d) {
        out[d] += w * (scale * load(p_.value_cache, value + d));
      }
    }
    write(out, sum, max);
  }

 private:
  double score(int64_t j) const {
    const int64_t query = token_ * p_.query.strides[0] + q_head_ * p_.query.strides[1];
    const int64_t key = p_.slot_offset(p_.key_cache, s_, seq_, kv_head_, j);
    const double scale = p_.slot_scale(p_.key_scale, s_, seq_, kv_head_, j);
    double s = 0;
    for (int64_t d = 0; d < p_.head_dim; ++d) {
      s += load(p_.query, query + d) * (scale * load(p_.key_cache, key + d));
    }
    s *= p_.softmax_scale;
    if (p_.attn_logits_soft_cap) {
      const double cap = *p_.attn_logits_soft_cap;
      s = cap * std::tanh(s / cap);
    }
    const KeyRange visible = p_.mask.visible(seq_, position_);
    const bool masked = j < visible.begin || j >= visible.end;
    return masked ? s + p_.mask_value : s;
  }

  // exp(s - max); 0 for -inf also where all scores are -inf and the difference would be NaN.
  static double weight(double s, double max) { return s == -kInfinity ? 0 : std::exp(s - max); }

  void write(const std::vector<double>& out, double sum, double max) const {
    const int64_t row = token_ * p_.output.strides[0] + q_head_ * p_.output.strides[1];
    for (int64_t d = 0; d < p_.v_head_dim; ++d) {
      store(p_.output, row + d, sum == 0 ? 0.0 : out[d] / sum);
    }
    if (p_.lse.given()) {
      store(p_.lse, token_ * p_.lse.strides[0] + q_head_ * p_.lse.strides[1],
            sum == 0 ? -kInfinity : max + std::log(sum));
    }
  }

  const Problem& p_;
  const int64_t s_;
  const SequenceGeometry& seq_;
  const int64_t q_head_, kv_head_, token_, position_;
  const KeyRange keys_;
};

class ReferenceBackend final : public Backend {
 public:
  const char* name() const override { return "reference"; }
  const char* description() const override {
    return "double precision, one thread, three loops: the formula, slow";
  }
  Result<size_t> workspace_size(const Problem&, const RunSettings&) const override {
    return size_t{0};
  }

  Status run(const Problem& p, const RunSettings& settings, CallReport* report) const override {
    for (int64_t s = 0; s < p.num_seqs; ++s) {
      const SequenceGeometry seq = p.sequence(s);
      for (int64_t i = 0; i < seq.num_rows; ++i) {
        for (int64_t q_head = 0; q_head < p.num_q_heads; ++q_head) {
          if (settings.cancellation.requested()) return {};  // the caller looks too
          Row(p, s, seq, i, q_head).run();
        }
      }
    }
    report->target = "double";
    report->num_threads = 1;
    return {};
  }
};

}  // namespace

const Backend* reference_backend() {
  static const ReferenceBackend backend;
  return &backend;
}

}  // namespace pagefill
