/* The paged KV cache: who owns which page, and how new tokens get into their slots. */
#ifndef PAGEFILL_C_KV_CACHE_H_
#define PAGEFILL_C_KV_CACHE_H_

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

/* A null pagefill_append_options is the default. */
typedef struct pagefill_append_options {
  size_t struct_size;
  /* Null (0), or int32 [num_seqs]: the absolute position of the page table's first slot. */
  const pagefill_tensor* kv_start;
  /* Null (1), or what to quantise with, in the shapes that attention takes. Only with a quantised cache. */
  const pagefill_tensor* key_scale;
  const pagefill_tensor* value_scale;
  /* Null, or float32 [num_kv_heads, total_num_pages, page_size], written: the scale of each new slot is
   * chosen, max|x| / the largest number of the dtype (127, 448, 57344), at least 2^-126; 1 for a row of
   * zeros; NaN for a row with a NaN or an infinity. Not together with key_scale, value_scale. */
  const pagefill_tensor* chosen_key_scale;
  const pagefill_tensor* chosen_value_scale;
} pagefill_append_options;

static inline pagefill_append_options pagefill_append_options_init(void) {
  pagefill_append_options options;
  memset(&options, 0, sizeof options);
  pagefill_set_struct_size(&options.struct_size, sizeof options);
  return options;
}

/* Writes the keys and values of new tokens into their slots, rounding to the cache's dtype. A quantised
 * cache gets x / scale, saturated at the dtype's largest number; in int8 a NaN becomes 0. The
 * metadata are those of the attention call that follows: token i of the n = query_starts[s+1] -
 * query_starts[s] of sequence s goes to position context_lens[s] - n + i.
 *
 *   keys         [total_tokens, num_kv_heads, head_dim], float32, bfloat16 or float16
 *   values       [total_tokens, num_kv_heads, v_head_dim], keys' dtype
 *   key_cache    [num_kv_heads, total_num_pages, page_size, head_dim]; written
 *   value_cache  [num_kv_heads, total_num_pages, page_size, v_head_dim]; written
 *   query_starts int32 [num_seqs + 1], context_lens int32 [num_seqs],
 *   page_table   int32 [num_seqs, max_pages] */
PAGEFILL_EXPORT pagefill_status pagefill_append_kv(
    const pagefill_tensor* keys, const pagefill_tensor* values, const pagefill_tensor* key_cache,
    const pagefill_tensor* value_cache, const pagefill_tensor* query_starts,
    const pagefill_tensor* context_lens, const pagefill_tensor* page_table,
    const pagefill_append_options* options, const pagefill_context* context);

/* One page whose first num_slots slots are to be copied before destination is written. An element of
 * arrays: never grows, so it has no struct_size. */
typedef struct pagefill_page_copy {
  int32_t source;
  int32_t destination;
  int32_t num_slots;
} pagefill_page_copy;

/* A null pagefill_copy_options is the default. */
typedef struct pagefill_copy_options {
  size_t struct_size;
  /* Null, or float32 [num_kv_heads, total_num_pages, page_size]: scales a slot of a quantised cache, which
   * move with the elements. */
  const pagefill_tensor* key_scale;
  const pagefill_tensor* value_scale;
  /* Null, or int32 [num_copies, 3] where the caches lie, strides free, in place of the list: source,
   * destination, num_slots. On a CUDA device they are read there, so that a captured graph replays other
   * copies; one that is bad is not done, and reported to cuda_status. */
  const pagefill_tensor* copies;
} pagefill_copy_options;

static inline pagefill_copy_options pagefill_copy_options_init(void) {
  pagefill_copy_options options;
  memset(&options, 0, sizeof options);
  pagefill_set_struct_size(&options.struct_size, sizeof options);
  return options;
}

/* Carries out copies of pages in a cache, all KV heads, in their order. copies may be null where num_copies
 * is 0. */
PAGEFILL_EXPORT pagefill_status pagefill_copy_pages(const pagefill_page_copy* copies,
                                                    size_t num_copies,
                                                    const pagefill_tensor* key_cache,
                                                    const pagefill_tensor* value_cache,
                                                    const pagefill_copy_options* options,
                                                    const pagefill_context* context);

/* Hands out the pages of one cache to sequences. Pages are reference-counted: a fork shares its
 * parent's pages, and a shared last page is copied only when one of its owners appends to it. Knows
 * page numbers only. Not thread-safe. */
typedef struct pagefill_page_allocator pagefill_page_allocator;

/* total_num_pages >= 0, page_size >= 1. To be given back with pagefill_page_allocator_destroy. */
PAGEFILL_EXPORT pagefill_status pagefill_page_allocator_create(int64_t total_num_pages,
                                                               int64_t page_size,
                                                               pagefill_page_allocator** allocator);

/* Null is let pass. */
PAGEFILL_EXPORT void pagefill_page_allocator_destroy(pagefill_page_allocator* allocator);

/* An empty sequence. Its name is not used again. */
PAGEFILL_EXPORT pagefill_status
pagefill_page_allocator_add_sequence(pagefill_page_allocator* allocator, int64_t* sequence);

/* A sequence with the parent's tokens so far, sharing all of its pages. */
PAGEFILL_EXPORT pagefill_status pagefill_page_allocator_fork(pagefill_page_allocator* allocator,
                                                             int64_t parent, int64_t* sequence);

/* Makes room for num_tokens (>= 0) more tokens. Where *num_copies comes out as 1, *copy has to be
 * carried out (pagefill_copy_pages) before the new tokens are written; else it is 0.
 * PAGEFILL_RESOURCE_EXHAUSTED when there are too few free pages. */
PAGEFILL_EXPORT pagefill_status pagefill_page_allocator_append(pagefill_page_allocator* allocator,
                                                               int64_t sequence, int64_t num_tokens,
                                                               pagefill_page_copy* copy,
                                                               size_t* num_copies);

/* Forgets the tokens from position context_len on. kv_start <= context_len <= the present one. */
PAGEFILL_EXPORT pagefill_status pagefill_page_allocator_truncate(pagefill_page_allocator* allocator,
                                                                 int64_t sequence,
                                                                 int64_t context_len);

/* Frees the pages that lie wholly before position (>= 0); kv_start moves up to the first that stays. */
PAGEFILL_EXPORT pagefill_status pagefill_page_allocator_drop_before(
    pagefill_page_allocator* allocator, int64_t sequence, int64_t position);

/* The sequence is gone; pages that nobody else holds are free. */
PAGEFILL_EXPORT pagefill_status pagefill_page_allocator_release(pagefill_page_allocator* allocator,
                                                                int64_t sequence);

typedef struct pagefill_page_allocator_info {
  size_t struct_size;
  int64_t total_num_pages;
  int64_t page_size;
  int64_t num_free_pages;
  int64_t num_sequences;
} pagefill_page_allocator_info;

static inline pagefill_page_allocator_info pagefill_page_allocator_info_init(void) {
  pagefill_page_allocator_info info;
  memset(&info, 0, sizeof info);
  pagefill_set_struct_size(&info.struct_size, sizeof info);
  return info;
}

PAGEFILL_EXPORT pagefill_status pagefill_page_allocator_get_info(
    const pagefill_page_allocator* allocator, pagefill_page_allocator_info* info);

/* How many sequences hold the page; 0 when it is free or not in the cache. */
PAGEFILL_EXPORT pagefill_status pagefill_page_allocator_reference_count(
    const pagefill_page_allocator* allocator, int64_t page, int64_t* reference_count);

/* The metadata of a sequence for the attention call. page_indices is good until the next call that
 * changes this sequence; null where num_pages is 0. */
typedef struct pagefill_sequence_info {
  size_t struct_size;
  int64_t context_len;
  int64_t kv_start;
  const int32_t* page_indices;
  int64_t num_pages;
} pagefill_sequence_info;

static inline pagefill_sequence_info pagefill_sequence_info_init(void) {
  pagefill_sequence_info info;
  memset(&info, 0, sizeof info);
  pagefill_set_struct_size(&info.struct_size, sizeof info);
  return info;
}

PAGEFILL_EXPORT pagefill_status pagefill_page_allocator_get_sequence(
    const pagefill_page_allocator* allocator, int64_t sequence, pagefill_sequence_info* info);

#ifdef __cplusplus
}
#endif

#endif /* PAGEFILL_C_KV_CACHE_H_ */
