// A call whose arguments have all been checked: what a backend gets.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "geometry.h"
#include "pagefill/kv_cache.h"
#include "pagefill/tensor.h"

namespace pagefill {

// What the elements of a quantised cache are multiplied by. A stride is 0 where one scale is for all.
struct CacheScale {
  const float* data = nullptr;  // null: 1
  int64_t head_stride = 0;
  int64_t page_stride = 0;
  int64_t slot_stride = 0;
};

inline constexpr int64_t kMaxHeadDim = 512;  // of keys and of values

// Every pointer and stride in here is good, and where the memory is the CPU's every table entry that is
// needed and every length. The batch of one is a batch like any other.
struct Problem {
  TensorView query;          // [total_tokens, num_q_heads, head_dim]
  TensorView key_cache;      // [num_kv_heads, total_num_pages, page_size, head_dim]
  TensorView value_cache;    // [num_kv_heads, total_num_pages, page_size, v_head_dim]
  MutableTensorView output;  // [total_tokens, num_q_heads, v_head_dim]
  MutableTensorView lse;     // float32 [total_tokens, num_q_heads], or not given
  TensorView query_starts;   // int32 [num_seqs + 1], or not given: one sequence, which has all rows
  TensorView context_lens;   // int32 [num_seqs]
  TensorView page_table;     // int32 [num_seqs, max_pages]
  TensorView kv_start;       // int32 [num_seqs], or not given
  TensorView sinks;          // float32 [num_q_heads], or not given
  CacheScale key_scale;
  CacheScale value_scale;

  Device device;  // of all of them

  int64_t num_seqs = 0;
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t group = 0;  // query heads that share a KV head
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t page_size = 0;

  float softmax_scale = 0;
  std::optional<float> attn_logits_soft_cap;
  float mask_value = 0;
  MaskRule mask;

  SequenceGeometry sequence(int64_t s) const {
    const auto at = [](const TensorView& v, int64_t i) {
      return static_cast<int64_t>(static_cast<const int32_t*>(v.data)[i * v.strides[0]]);
    };
    const int64_t start = query_starts.given() ? at(query_starts, s) : 0;
    const int64_t end = query_starts.given() ? at(query_starts, s + 1) : query.shape[0];
    return {start, end - start, at(context_lens, s), kv_start.given() ? at(kv_start, s) : 0};
  }

  // The physical page of logical page `page` of sequence s.
  int64_t physical_page(int64_t s, int64_t page) const {
    return static_cast<const int32_t*>(
        page_table.data)[s * page_table.strides[0] + page * page_table.strides[1]];
  }

  // Element offset of (kv head, key position) in a cache; the position is in the table's range.
  int64_t slot_offset(const TensorView& cache, int64_t s, const SequenceGeometry& seq,
                      int64_t kv_head, int64_t position) const {
    const int64_t token = position - seq.kv_start;
    return kv_head * cache.strides[0] + physical_page(s, token / page_size) * cache.strides[1] +
           token % page_size * cache.strides[2];
  }

  // What the elements of the slot of (kv head, key position) are multiplied by. That of a position that
  // no row sees may be anything.
  float slot_scale(const CacheScale& scale, int64_t s, const SequenceGeometry& seq, int64_t kv_head,
                   int64_t position) const {
    if (scale.data == nullptr) return 1;
    const int64_t token = position - seq.kv_start;
    return scale.data[kv_head * scale.head_stride +
                      physical_page(s, token / page_size) * scale.page_stride +
                      token % page_size * scale.slot_stride];
  }

  float sink(int64_t q_head) const {
    return static_cast<const float*>(sinks.data)[q_head * sinks.strides[0]];
  }
};

// New keys or new values, and the cache that they go to.
struct Transfer {
  TensorView tokens;               // [total_tokens, num_kv_heads, head_dim]
  MutableTensorView cache;         // [num_kv_heads, total_num_pages, page_size, head_dim]
  CacheScale scale;                // to quantise with,
  MutableTensorView chosen_scale;  // or to be chosen: [num_kv_heads, total_num_pages, page_size]
};

// An append_kv whose arguments have been checked; of `batch` the metadata, page_size and num_seqs count, and
// key_cache as what the metadata speak of.
struct AppendProblem {
  Problem batch;
  Transfer keys, values;
};

// A copy_pages whose arguments have been checked; scales are given or not.
struct CopyProblem {
  std::span<const PageCopy> copies;
  MutableTensorView key_cache, value_cache, key_scale, value_scale;
  TensorView listed;  // or not given: the copies, on the device, in place of the others
};

// A merge_attention_states whose arguments have been checked.
struct MergeProblem {
  TensorView output_a, lse_a, output_b, lse_b;
  MutableTensorView output, lse;  // lse: or not given
};

}  // namespace pagefill
