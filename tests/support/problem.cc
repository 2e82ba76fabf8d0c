#include "support/problem.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

namespace pagefill::testing {
namespace {

std::vector<float> normals(int64_t count, DType dtype, std::mt19937& generator) {
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& x : numbers) x = round_to(dtype, normal(generator));
  return numbers;
}

}  // namespace

float round_to(DType dtype, float value) {
  switch (dtype) {
    case DType::kBFloat16:
      return static_cast<float>(bfloat16(value));
    case DType::kFloat16:
      return static_cast<float>(float16(value));
    default:
      return value;
  }
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
  p.cache_dtype = g.cache_dtype;
  for (const Lengths& lengths : g.sequences) {
    Sequence seq;
    seq.context_len = lengths.context_len;
    seq.num_rows = lengths.num_rows;
    seq.query = normals(seq.num_rows * p.num_q_heads * p.head_dim, p.query_dtype, generator);
    seq.keys = normals(seq.context_len * p.num_kv_heads * p.head_dim, p.cache_dtype, generator);
    seq.values = normals(seq.context_len * p.num_kv_heads * p.v_head_dim, p.cache_dtype, generator);
    p.sequences.push_back(std::move(seq));
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
  for (const Sequence& seq : p.sequences) {
    text += fmt::format(", {} @ {} from {}", seq.num_rows, seq.context_len, seq.kv_start);
  }
  return text;
}

}  // namespace pagefill::testing
