// Attention over a paged KV cache.
//
// Query i of a chunk stands at absolute position p = context_len - chunk_size + i. It sees key j when
// j <= p, j < context_len and, with a sliding window W, j >= p - W + 1. Query head h reads KV head
// h / (num_q_heads / num_kv_heads).
//
//     s_j = softmax_scale * dot(q, k_j)
//     s_j = attn_logits_soft_cap * tanh(s_j / attn_logits_soft_cap)     where given
//     w   = softmax of s over the visible j, and the head's sink where given
//     out = sum_j w_j v_j                                 rounded once to query's dtype
//     lse = log(sum_j exp(s_j)), natural, with the sink where given
//
// The formula and the arguments' names are those of ejkernel's prefill_page_attention.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

#include "pagefill/executor.h"
#include "pagefill/export.h"
#include "pagefill/status.h"
#include "pagefill/tensor.h"

namespace pagefill {

inline constexpr float kDefaultMaskValue = -0.7f * std::numeric_limits<float>::max();

// At or below this, a masked key has weight exactly 0. Above it, mask_value is added to its score.
inline constexpr float kMaskExcludes = -1e4f;

struct AttentionOptions {
  // Multiplies the scores; finite. Default: 1 / sqrt(head_dim), computed in float32.
  std::optional<float> softmax_scale{};
  // s becomes cap * tanh(s / cap), before the mask; > 0 and finite. Default: no cap.
  std::optional<float> attn_logits_soft_cap{};
  // A query sees at most that many keys, its own included; >= 1. Default: all.
  std::optional<int64_t> sliding_window{};
  // At or below kMaskExcludes masked keys are excluded. Above it, it is added to the (scaled, capped)
  // scores of the masked keys of the context, which then count, as ejkernel does it. Not NaN, not +inf.
  float mask_value = kDefaultMaskValue;
  // float32 [num_q_heads]: a logit a head that takes part in the softmax and has no value.
  TensorView sinks{};
  // int32 [num_seqs]: the absolute position of the page table's first slot; >= 0. Keys before it do
  // not take part. Default: 0.
  TensorView kv_start{};
  // float32 [1], [num_kv_heads] or [num_kv_heads, total_num_pages, page_size]: what the elements of a
  // quantised key_cache, of value_cache, are multiplied by; strides are free. Only with a quantised
  // cache. Default: 1.
  TensorView key_scale{};
  TensorView value_scale{};
};

// Where results go. `lse` is optional.
struct AttentionOutput {
  // [total_tokens, num_q_heads, v_head_dim], query's dtype.
  MutableTensorView output{};
  // float32 [total_tokens, num_q_heads]: natural-log log-sum-exp of each row's scores.
  MutableTensorView lse{};

  AttentionOutput() = default;
  AttentionOutput(MutableTensorView out) : output(out) {}  // NOLINT: implicit on purpose
  AttentionOutput(MutableTensorView out, MutableTensorView log_sum_exp)
      : output(out), lse(log_sum_exp) {}
};

// The chunk of one sequence attends to all that the cache holds for it.
//
//   query         [chunk_size, num_q_heads, head_dim], float32, bfloat16 or float16
//   key_cache     [num_kv_heads, total_num_pages, page_size, head_dim], float32, bfloat16, float16, or
//                 quantised: int8, float8_e4m3fn or float8_e5m2, with key_scale and value_scale
//   value_cache   [num_kv_heads, total_num_pages, page_size, v_head_dim], key_cache's dtype
//   context_len   int32 [1]: tokens in the context, this chunk's included
//   page_indices  int32 [num_pages]: the physical page of the sequence's logical page i. Only those that
//                 hold a visible key are read.
//
// head_dim and v_head_dim are multiples of 8 up to 512. Strides are free, the innermost is 1. The
// chunk's own keys and values are already in the cache (append_kv). A row that sees no key (p < 0, or
// an empty context) gives output 0 and lse -inf; with sinks, output 0 and lse = the sink.
//
// Errors name the argument; nothing is written then. Bits of a row do not depend on how the prompt was
// cut, the batch, the page size and placement, strides or threads.
PAGEFILL_EXPORT Status prefill_page_attention(
    const TensorView& query, const TensorView& key_cache, const TensorView& value_cache,
    const TensorView& context_len, const TensorView& page_indices, const AttentionOptions& options,
    const AttentionOutput& output, const Context& context = {});

// The same for a ragged batch of sequences, chunks and single decode tokens mixed.
//
//   query         [total_tokens, num_q_heads, head_dim]
//   query_starts  int32 [num_seqs + 1]: the rows of sequence s are [query_starts[s], query_starts[s+1]).
//                 Starts at 0, never decreases. Rows from query_starts[num_seqs] on are padding and are
//                 left as they are.
//   context_lens  int32 [num_seqs]
//   page_table    int32 [num_seqs, max_pages]
PAGEFILL_EXPORT Status ragged_page_attention(
    const TensorView& query, const TensorView& key_cache, const TensorView& value_cache,
    const TensorView& query_starts, const TensorView& context_lens, const TensorView& page_table,
    const AttentionOptions& options, const AttentionOutput& output, const Context& context = {});

// Bytes of workspace that ragged_page_attention needs with the same arguments: exactly that many.
// prefill_page_attention is the batch of one: query_starts = {0, chunk_size}, context_lens =
// context_len, page_table = page_indices as [1, num_pages].
PAGEFILL_EXPORT Result<size_t> attention_workspace_size(
    const TensorView& query, const TensorView& key_cache, const TensorView& value_cache,
    const TensorView& query_starts, const TensorView& context_lens, const TensorView& page_table,
    const AttentionOptions& options, const AttentionOutput& output, const Context& context = {});

// Combines attention over two disjoint sets of keys into attention over their union.
//
//   output_a, output_b  [total_tokens, num_q_heads, v_head_dim], one dtype
//   lse_a, lse_b        float32 [total_tokens, num_q_heads]
//
// The identity is (0, -inf); where one lse is -inf, the other state is taken bit for bit. `merged` may
// be the memory of a or of b. A sink belongs into one of the states only.
PAGEFILL_EXPORT Status merge_attention_states(const TensorView& output_a, const TensorView& lse_a,
                                              const TensorView& output_b, const TensorView& lse_b,
                                              const AttentionOutput& merged,
                                              const Context& context = {});

}  // namespace pagefill
