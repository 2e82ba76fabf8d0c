// A call of append_kv: its arguments, and the memory behind them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pagefill/kv_cache.h"
#include "support/buffer.h"
#include "support/layout.h"

namespace pagefill::testing {

struct NewTokens {
  int64_t num_tokens = 0;
  int64_t context_len = 0;  // with the new tokens
  int64_t kv_start = 0;
};

struct AppendGeometry {
  std::vector<NewTokens> sequences = {{5, 5}, {0, 7}, {1, 20}, {7, 19, 6}, {3, 3}};
  int64_t num_kv_heads = 2;
  int64_t head_dim = 16;
  int64_t v_head_dim = 24;
  int64_t page_size = 3;
  DType tokens_dtype = DType::kFloat32;
  DType cache_dtype = DType::kFloat32;
  CacheOrder cache_order = CacheOrder::kHeadMajor;
  int64_t padding_tokens = 2;        // behind the last sequence
  int64_t token_gap = 0;             // elements of nobody between two tokens
  ScalePer scale = ScalePer::kNone;  // to quantise with
  bool choose_scales = false;
  uint32_t seed = 1;
};

std::string describe(const AppendGeometry& geometry);

// The caches are full of canaries, and every memory ends at an unmapped page. Table entries that no new
// token needs are -1.
struct AppendCase {
  explicit AppendCase(const AppendGeometry& geometry);

  Status call(const Context& context = {.num_threads = 1}) const;

  // Every new token lies in its slot, divided by the slot's scale and rounded; every scale that was to be
  // chosen is there; and nothing else has changed.
  void expect_written() const;
  void expect_untouched() const;

  void lay_out_scales(int64_t num_pages);

  AppendGeometry geometry;
  TensorView keys, values;
  MutableTensorView key_cache, value_cache;
  std::vector<int32_t> query_starts, context_lens, kv_start, pages;
  TensorView page_table;
  AppendOptions options;         // without kv_start, which call() adds
  std::vector<float> scales[2];  // of keys and of values, that are given
  GuardedBuffer chosen_key_memory, chosen_value_memory;
  GuardedBuffer keys_memory, values_memory, key_memory, value_memory;  // value_memory: not if fused
};

// Appends, and fails the test where not all is as it should be.
void expect_appends(const AppendGeometry& geometry);

// What a number becomes in a dtype, rounded to nearest even in float64 arithmetic.
double rounded(double value, DType dtype);

// The largest number of a quantised dtype.
double largest_of(DType dtype);

// The strides of a cache [num_kv_heads, pages, page_size, dim] in memory of that order, and of both caches
// together.
struct CacheStrides {
  std::vector<int64_t> key, value;
  int64_t key_elements = 0;    // of the memory; of both caches where it is fused
  int64_t value_elements = 0;  // 0: the values lie in the memory of the keys,
  int64_t value_offset = 0;    // from here on
};
CacheStrides cache_strides(CacheOrder order, int64_t num_kv_heads, int64_t num_pages,
                           int64_t page_size, int64_t head_dim, int64_t v_head_dim);

}  // namespace pagefill::testing
