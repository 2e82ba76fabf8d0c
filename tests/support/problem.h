// A call of the operator as logical data: who attends to what, without a word on memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pagefill/attention.h"

namespace pagefill::testing {

// How many of a quantised cache's elements share a scale.
enum class ScalePer { kNone, kTensor, kHead, kSlot };

struct Scales {
  ScalePer per = ScalePer::kNone;
  std::vector<float> numbers;  // kTensor: [1], kHead: [num_kv_heads], else in each sequence
};

struct Sequence {
  int64_t context_len = 0;
  int64_t num_rows = 0;  // its last tokens, the ones that ask
  int64_t kv_start = 0;
  std::vector<float> query;   // [num_rows, num_q_heads, head_dim]
  std::vector<float> keys;    // [context_len, num_kv_heads, head_dim], by absolute position
  std::vector<float> values;  // [context_len, num_kv_heads, v_head_dim]
  std::vector<float> key_scales, value_scales;  // [context_len, num_kv_heads], where per slot

  int64_t position(int64_t row) const { return context_len - num_rows + row; }
};

// All numbers are float, and numbers that the dtypes hold exactly. In a quantised cache, the keys that
// take part are these times their scales.
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
  Scales key_scale, value_scale;
  std::vector<Sequence> sequences;

  int64_t total_rows() const;
  // The scale of a key of a KV head: of `slots`, the sequence's, where it is per slot.
  float scale_at(const Scales& scales, const std::vector<float>& slots, int64_t key,
                 int64_t kv_head) const;
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

// Independent standard normals, rounded to the dtypes. A quantised cache has scales per slot, with which
// its elements are about as large.
Problem random_problem(const Geometry& geometry);

// Makes the cache a quantised one, of elements of its dtype's size; without scales.
void quantise_cache(Problem& problem, DType dtype);

// Gives the keys or the values scales, in a cache that is int8 where it was not quantised.
void add_key_scale(Problem& problem, ScalePer per);
void add_value_scale(Problem& problem, ScalePer per);

// Gives every head a sink, about as heavy as a handful of keys.
void add_sinks(Problem& problem);

// The first `kv_start` keys of each sequence (or all but the last, where there are fewer) are gone.
void drop_keys_before(Problem& problem, int64_t kv_start);

// "4/2 heads, head_dim 32, ...", for traces.
std::string describe(const Problem& problem);

// What is left of a number that is stored as `dtype`.
float round_to(DType dtype, float value);

inline constexpr DType kFloatDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
inline constexpr DType kQuantisedDTypes[] = {DType::kInt8, DType::kFloat8E4M3, DType::kFloat8E5M2};
inline constexpr DType kCacheDTypes[] = {DType::kFloat32, DType::kBFloat16,   DType::kFloat16,
                                         DType::kInt8,    DType::kFloat8E4M3, DType::kFloat8E5M2};
inline constexpr ScalePer kScalesPer[] = {ScalePer::kTensor, ScalePer::kHead, ScalePer::kSlot};

}  // namespace pagefill::testing
