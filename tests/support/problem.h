// A call of the operator as logical data: who attends to what, without a word on memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pagefill/attention.h"

namespace pagefill::testing {

struct Sequence {
  int64_t context_len = 0;
  int64_t num_rows = 0;  // its last tokens, the ones that ask
  int64_t kv_start = 0;
  std::vector<float> query;   // [num_rows, num_q_heads, head_dim]
  std::vector<float> keys;    // [context_len, num_kv_heads, head_dim], by absolute position
  std::vector<float> values;  // [context_len, num_kv_heads, v_head_dim]

  int64_t position(int64_t row) const { return context_len - num_rows + row; }
};

// All numbers are float, and numbers that the dtypes hold exactly.
struct Problem {
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  DType query_dtype = DType::kFloat32;
  DType cache_dtype = DType::kFloat32;
  AttentionOptions options;  // its views stay empty: sinks and kv_start are data here
  std::vector<float> sinks;  // [num_q_heads], or empty: not given
  bool kv_start_given = false;
  std::vector<Sequence> sequences;

  int64_t total_rows() const;
};

struct Lengths {
  int64_t num_rows = 0;
  int64_t context_len = 0;
};

struct Geometry {
  std::vector<Lengths> sequences = {{20, 150}};
  int64_t num_q_heads = 4;
  int64_t num_kv_heads = 2;
  int64_t head_dim = 32;
  int64_t v_head_dim = 0;  // 0: head_dim
  DType query_dtype = DType::kFloat32;
  DType cache_dtype = DType::kFloat32;
  uint32_t seed = 1;
};

// Independent standard normals, rounded to the dtypes.
Problem random_problem(const Geometry& geometry);

// Gives every head a sink, about as heavy as a handful of keys.
void add_sinks(Problem& problem);

// The first `kv_start` keys of each sequence (or all but the last, where there are fewer) are gone.
void drop_keys_before(Problem& problem, int64_t kv_start);

// "4/2 heads, head_dim 32, ...", for traces.
std::string describe(const Problem& problem);

// What is left of a number that is stored as `dtype`.
float round_to(DType dtype, float value);

inline constexpr DType kFloatDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

}  // namespace pagefill::testing
