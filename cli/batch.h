// The general call's arguments, and the formula's sets of keys, for those who check the library: written
// after DESIGN's section 1, not after the library.
#pragma once

#include <cstdint>

#include "pagefill/attention.h"
#include "pagefill/status.h"
#include "tensor.h"

namespace pagefill::cli {

// Half-open range of absolute key positions.
struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;
  bool contains(int64_t key) const { return begin <= key && key < end; }
  bool empty() const { return begin >= end; }
};

// The geometry is only meaningful once the library has accepted the batch.
struct Batch {
  TensorView query, key_cache, value_cache, query_starts, context_lens, page_table;
  AttentionOptions options;

  int64_t num_q_heads() const { return query.shape[1]; }
  int64_t num_kv_heads() const { return key_cache.shape[0]; }
  int64_t page_size() const { return key_cache.shape[2]; }

  int64_t num_seqs() const { return context_lens.shape[0]; }
  int64_t query_start(int64_t s) const { return entry(query_starts, s); }
  int64_t num_rows(int64_t s) const { return query_start(s + 1) - query_start(s); }
  int64_t context_len(int64_t s) const { return entry(context_lens, s); }
  int64_t kv_start(int64_t s) const {
    return options.kv_start.given() ? entry(options.kv_start, s) : 0;
  }
  int64_t position(int64_t s, int64_t row) const { return context_len(s) - num_rows(s) + row; }

  // Whether the keys that the causal rule and the window hide get mask_value added rather than weight 0.
  bool masked_keys_count() const { return options.mask_value > kMaskExcludes; }

  // The keys that the causal rule and the window leave to a position.
  KeyRange visible_keys(int64_t s, int64_t position) const;
  // The keys that take part in the softmax of a position, and of a whole chunk.
  KeyRange attended_keys(int64_t s, int64_t position) const;
  KeyRange attended_keys(int64_t s) const;

  // The logical page and the slot of key `position` of a sequence, and where it lies in a cache.
  int64_t logical_page(int64_t s, int64_t position) const {
    return (position - kv_start(s)) / page_size();
  }
  int64_t slot(int64_t s, int64_t position) const { return (position - kv_start(s)) % page_size(); }
  int64_t physical_page(int64_t s, int64_t position) const;
  int64_t offset(const TensorView& cache, int64_t s, int64_t kv_head, int64_t position) const;
  // What the elements of key `position` are multiplied by; 1 without scales.
  double scale(const TensorView& scale, int64_t s, int64_t kv_head, int64_t position) const;

 private:
  static int64_t entry(const TensorView& view, int64_t i) {
    return static_cast<const int32_t*>(view.data)[i * view.strides[0]];
  }
};

// What a call returns.
struct State {
  Tensor output;  // [total_tokens, num_q_heads, v_head_dim], query's dtype; 0 in padding rows
  Tensor lse;     // float32 [total_tokens, num_q_heads]; 0 in padding rows
};

// The memory for the result of a call with these arguments, right or wrong: where shapes are wrong, the
// call says so before it looks at the result's.
State state_for(const Batch& batch);

// Runs ragged_page_attention (ragged_from_host).
Result<State> attend(const Batch& batch, const Context& context);

}  // namespace pagefill::cli
