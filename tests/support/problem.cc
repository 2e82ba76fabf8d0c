#include "support/problem.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "support/elements.h"

namespace pagefill::testing {

float round_to(DType dtype, float value) {
  alignas(float) std::byte element[sizeof(float)];
  store(element, dtype, 0, value);
  return static_cast<float>(load(element, dtype, 0));
}

namespace {

std::vector<float> normals(int64_t count, DType dtype, std::mt19937& generator) {
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& x : numbers) x = round_to(dtype, normal(generator));
  return numbers;
}

// What standard normals are multiplied by to become elements: an int8 has no fractions.
float spread(DType dtype) { return dtype == DType::kInt8 ? 40.0f : 1.0f; }

// Between 0.6 and 1.8 of what makes elements standard normals; no power of two, no two alike nearby.
float nth_scale(DType dtype, size_t n) {
  return (0.6f + 0.1f * static_cast<float>(n * 7 % 13)) / spread(dtype);
}

void add_scale(Problem& p, ScalePer per, Scales& scales, std::vector<float> Sequence::*slots) {
  if (!is_quantised(p.cache_dtype)) quantise_cache(p, DType::kInt8);
  const size_t shift = &scales == &p.key_scale ? 1 : 3;  // keys and values have scales of their own
  scales = {per, {}};
  const int64_t count = per == ScalePer::kTensor ? 1 : per == ScalePer::kHead ? p.num_kv_heads : 0;
  for (int64_t i = 0; i < count; ++i) {
    scales.numbers.push_back(nth_scale(p.cache_dtype, static_cast<size_t>(i) + shift));
  }
  size_t n = shift;
  for (Sequence& seq : p.sequences) {
    (seq.*slots).clear();
    if (per != ScalePer::kSlot) continue;
    for (int64_t i = 0; i < seq.context_len * p.num_kv_heads; ++i) {
      (seq.*slots).push_back(nth_scale(p.cache_dtype, n++));
    }
  }
}

}  // namespace

float Problem::scale_at(const Scales& scales, const std::vector<float>& slots, int64_t key,
                        int64_t kv_head) const {
  switch (scales.per) {
    case ScalePer::kNone:
      return 1;
    case ScalePer::kTensor:
      return scales.numbers[0];
    case ScalePer::kHead:
      return scales.numbers[static_cast<size_t>(kv_head)];
    case ScalePer::kSlot:
      return slots[static_cast<size_t>(key * num_kv_heads + kv_head)];
  }
  return 0;
}

void quantise_cache(Problem& p, DType dtype) {
  p.cache_dtype = dtype;
  p.key_scale = p.value_scale = {};
  for (Sequence& seq : p.sequences) {
    for (std::vector<float>* elements : {&seq.keys, &seq.values}) {
      for (float& x : *elements) x = round_to(dtype, x * spread(dtype));
    }
  }
}

void add_key_scale(Problem& p, ScalePer per) {
  add_scale(p, per, p.key_scale, &Sequence::key_scales);
}

void add_value_scale(Problem& p, ScalePer per) {
  add_scale(p, per, p.value_scale, &Sequence::value_scales);
}

int64_t Problem::total_rows() const {
  int64_t rows = 0;
  for (const Sequence& seq : sequences) rows += seq.num_rows;
  return rows;
}

Problem random_problem(const Geometry& g) {
  std::mt19937 generator(g.seed);
  Problem p;
  p.num_q_heads = g.num_q_heads;
  p.num_kv_heads = g.num_kv_heads;
  p.head_dim = g.head_dim;
  p.v_head_dim = g.v_head_dim == 0 ? g.head_dim : g.v_head_dim;
  p.query_dtype = g.query_dtype;
  p.cache_dtype = is_quantised(g.cache_dtype) ? DType::kFloat32 : g.cache_dtype;
  for (const Lengths& lengths : g.sequences) {
    Sequence seq;
    seq.context_len = lengths.context_len;
    seq.num_rows = lengths.num_rows;
    seq.query = normals(seq.num_rows * p.num_q_heads * p.head_dim, p.query_dtype, generator);
    seq.keys = normals(seq.context_len * p.num_kv_heads * p.head_dim, p.cache_dtype, generator);
    seq.values = normals(seq.context_len * p.num_kv_heads * p.v_head_dim, p.cache_dtype, generator);
    p.sequences.push_back(std::move(seq));
  }
  if (is_quantised(g.cache_dtype)) {
    quantise_cache(p, g.cache_dtype);
    add_key_scale(p, ScalePer::kSlot);
    add_value_scale(p, ScalePer::kSlot);
  }
  return p;
}

void add_sinks(Problem& problem) {
  problem.sinks.clear();
  for (int64_t h = 0; h < problem.num_q_heads; ++h) {
    problem.sinks.push_back(1.5f + 0.25f * static_cast<float>(h % 5));
  }
}

void drop_keys_before(Problem& problem, int64_t kv_start) {
  problem.kv_start_given = true;
  for (Sequence& seq : problem.sequences) {
    seq.kv_start = std::clamp<int64_t>(kv_start, 0, std::max<int64_t>(seq.context_len - 1, 0));
  }
}

std::string describe(const Problem& p) {
  std::string text =
      fmt::format("heads {}/{}, head_dim {}/{}, query {}, cache {}", p.num_q_heads, p.num_kv_heads,
                  p.head_dim, p.v_head_dim, dtype_name(p.query_dtype), dtype_name(p.cache_dtype));
  if (is_quantised(p.cache_dtype)) {
    constexpr const char* kPer[] = {"none", "tensor", "head", "slot"};
    text += fmt::format(", scales per {}/{}", kPer[static_cast<int>(p.key_scale.per)],
                        kPer[static_cast<int>(p.value_scale.per)]);
  }
  for (const Sequence& seq : p.sequences) {
    text += fmt::format(", {} @ {} from {}", seq.num_rows, seq.context_len, seq.kv_start);
  }
  return text;
}

}  // namespace pagefill::testing
