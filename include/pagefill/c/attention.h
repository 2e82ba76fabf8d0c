/* Attention over a paged KV cache. */
#ifndef PAGEFILL_C_ATTENTION_H_
#define PAGEFILL_C_ATTENTION_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "pagefill/c/executor.h"
#include "pagefill/c/status.h"
#include "pagefill/c/tensor.h"
#include "pagefill/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bits of pagefill_attention_options.flags: which of the numbers are given. */
enum {
  PAGEFILL_HAS_SOFTMAX_SCALE = 1,
  PAGEFILL_HAS_ATTN_LOGITS_SOFT_CAP = 2,
  PAGEFILL_HAS_SLIDING_WINDOW = 4,
  PAGEFILL_HAS_MASK_VALUE = 8
};

/* A null pagefill_attention_options is the default. A number whose bit is not in flags must be 0, so
 * that none is set and then not used; unknown bits are refused. */
typedef struct pagefill_attention_options {
  size_t struct_size;
  uint32_t flags;
  float softmax_scale;        /* multiplies the scores; finite. Default: 1 / sqrt(head_dim) */
  float attn_logits_soft_cap; /* s becomes cap * tanh(s / cap), before the mask; finite, > 0 */
  float mask_value;           /* at or below -1e4 masked keys are excluded; above it, it is added to
                                 their scores, which then count. Default: -0.7 * FLT_MAX */
  int64_t sliding_window;     /* a query sees at most that many keys, its own included; >= 1 */
  /* Null, or float32 [num_q_heads]: a logit a head that takes part in the softmax, without a value. */
  const pagefill_tensor* sinks;
  /* Null (0), or int32 [num_seqs]: the absolute position of the page table's first slot. Keys before
   * it do not take part. */
  const pagefill_tensor* kv_start;
  /* Null (1), or float32 [1], [num_kv_heads] or [num_kv_heads, total_num_pages, page_size]: what the
   * elements of a quantised key_cache, of value_cache, are multiplied by; strides are free. Only with a
   * quantised cache. */
  const pagefill_tensor* key_scale;
  const pagefill_tensor* value_scale;
} pagefill_attention_options;

static inline pagefill_attention_options pagefill_attention_options_init(void) {
  pagefill_attention_options options;
  memset(&options, 0, sizeof options);
  pagefill_set_struct_size(&options.struct_size, sizeof options);
  return options;
}

/* The chunk of one sequence attends to all that the cache holds for it.
 *
 *   query         [chunk_size, num_q_heads, head_dim], float32, bfloat16 or float16
 *   key_cache     [num_kv_heads, total_num_pages, page_size, head_dim], one of the three dtypes, or
 *                 quantised: int8, float8_e4m3fn or float8_e5m2
 *   value_cache   [num_kv_heads, total_num_pages, page_size, v_head_dim], key_cache's dtype
 *   context_len   int32 [1]: tokens in the context, this chunk's included
 *   page_indices  int32 [num_pages]: the physical page of the sequence's logical page i
 *   output        [chunk_size, num_q_heads, v_head_dim], query's dtype; written
 *   lse           null, or float32 [chunk_size, num_q_heads]; written
 *
 * Head dims are multiples of 8 up to 512. Strides are free, the innermost is 1. The chunk's own keys
 * and values are already in the cache. A row that sees no key gives output 0 and lse -inf. */
PAGEFILL_EXPORT pagefill_status pagefill_prefill_page_attention(
    const pagefill_tensor* query, const pagefill_tensor* key_cache,
    const pagefill_tensor* value_cache, const pagefill_tensor* context_len,
    const pagefill_tensor* page_indices, const pagefill_attention_options* options,
    const pagefill_tensor* output, const pagefill_tensor* lse, const pagefill_context* context);

/* The same for a ragged batch of sequences, chunks and single decode tokens mixed.
 *
 *   query         [total_tokens, num_q_heads, head_dim]
 *   query_starts  int32 [num_seqs + 1]: the rows of sequence s are [query_starts[s], query_starts[s+1]);
 *                 from 0, never decreasing. Rows from query_starts[num_seqs] on are left as they are
 *   context_lens  int32 [num_seqs]
 *   page_table    int32 [num_seqs, max_pages]
 *   output        [total_tokens, num_q_heads, v_head_dim]
 *   lse           null, or float32 [total_tokens, num_q_heads] */
PAGEFILL_EXPORT pagefill_status pagefill_ragged_page_attention(
    const pagefill_tensor* query, const pagefill_tensor* key_cache,
    const pagefill_tensor* value_cache, const pagefill_tensor* query_starts,
    const pagefill_tensor* context_lens, const pagefill_tensor* page_table,
    const pagefill_attention_options* options, const pagefill_tensor* output,
    const pagefill_tensor* lse, const pagefill_context* context);

/* The bytes of workspace that pagefill_ragged_page_attention needs with the same arguments, exactly.
 * pagefill_prefill_page_attention is the batch of one: query_starts = {0, chunk_size}, context_lens =
 * context_len, page_table = page_indices as [1, num_pages]. */
PAGEFILL_EXPORT pagefill_status pagefill_attention_workspace_size(
    const pagefill_tensor* query, const pagefill_tensor* key_cache,
    const pagefill_tensor* value_cache, const pagefill_tensor* query_starts,
    const pagefill_tensor* context_lens, const pagefill_tensor* page_table,
    const pagefill_attention_options* options, const pagefill_tensor* output,
    const pagefill_tensor* lse, const pagefill_context* context, size_t* workspace_size);

/* Combines attention over two disjoint sets of keys into attention over their union.
 *
 *   output_a, output_b, merged_output  [total_tokens, num_q_heads, v_head_dim], one dtype
 *   lse_a, lse_b, merged_lse           float32 [total_tokens, num_q_heads]; merged_lse may be null
 *
 * The identity is (0, -inf). The merged state may be the memory of a or of b. */
PAGEFILL_EXPORT pagefill_status pagefill_merge_attention_states(
    const pagefill_tensor* output_a, const pagefill_tensor* lse_a, const pagefill_tensor* output_b,
    const pagefill_tensor* lse_b, const pagefill_tensor* merged_output,
    const pagefill_tensor* merged_lse, const pagefill_context* context);

#ifdef __cplusplus
}
#endif

#endif /* PAGEFILL_C_ATTENTION_H_ */
