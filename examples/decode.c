/* Decode in C: one token a step is written into its page and attends to all tokens before it. */
#include <math.h>
#include <pagefill/pagefill.h>
#include <stdio.h>
#include <stdlib.h>

enum { kSteps = 10, kQHeads = 4, kKvHeads = 2, kHeadDim = 16, kPages = 4, kPageSize = 4 };

static void check(pagefill_status status) {
  if (status == PAGEFILL_OK) return;
  fprintf(stderr, "%s\n", pagefill_last_error_message());
  exit(1);
}

/* What a model would compute for a token. */
static void project(float* data, int n, int token, float phase) {
  int i;
  for (i = 0; i < n; ++i) data[i] = sinf(phase + (float)(token + 1) * 0.37f * (float)(i + 1));
}

int main(void) {
  static float key_data[kKvHeads * kPages * kPageSize * kHeadDim];
  static float value_data[kKvHeads * kPages * kPageSize * kHeadDim];
  float query_data[kQHeads * kHeadDim], new_key[kKvHeads * kHeadDim],
      new_value[kKvHeads * kHeadDim];
  float output_data[kQHeads * kHeadDim], lse_data[kQHeads];
  const int64_t cache_shape[4] = {kKvHeads, kPages, kPageSize, kHeadDim};
  const int64_t query_shape[3] = {1, kQHeads, kHeadDim}, new_shape[3] = {1, kKvHeads, kHeadDim};
  const int64_t one = 1, two = 2;
  int32_t query_starts_data[2] = {0, 1}, context_lens_data[1];

  const pagefill_tensor key_cache =
      pagefill_tensor_init(key_data, PAGEFILL_FLOAT32, 4, cache_shape);
  const pagefill_tensor value_cache =
      pagefill_tensor_init(value_data, PAGEFILL_FLOAT32, 4, cache_shape);
  const pagefill_tensor query = pagefill_tensor_init(query_data, PAGEFILL_FLOAT32, 3, query_shape);
  const pagefill_tensor keys = pagefill_tensor_init(new_key, PAGEFILL_FLOAT32, 3, new_shape);
  const pagefill_tensor values = pagefill_tensor_init(new_value, PAGEFILL_FLOAT32, 3, new_shape);
  const pagefill_tensor output =
      pagefill_tensor_init(output_data, PAGEFILL_FLOAT32, 3, query_shape);
  const pagefill_tensor lse = pagefill_tensor_init(lse_data, PAGEFILL_FLOAT32, 2, query_shape);
  const pagefill_tensor query_starts =
      pagefill_tensor_init(query_starts_data, PAGEFILL_INT32, 1, &two);
  const pagefill_tensor context_lens =
      pagefill_tensor_init(context_lens_data, PAGEFILL_INT32, 1, &one);
  pagefill_attention_options options = pagefill_attention_options_init();

  pagefill_page_allocator* allocator;
  pagefill_sequence_info info = pagefill_sequence_info_init();
  pagefill_page_copy copy;
  size_t num_copies;
  int64_t sequence;
  int step, h;

  options.flags = PAGEFILL_HAS_SLIDING_WINDOW;
  options.sliding_window = 6;
  check(pagefill_page_allocator_create(kPages, kPageSize, &allocator));
  check(pagefill_page_allocator_add_sequence(allocator, &sequence));
  for (step = 0; step < kSteps; ++step) {
    int64_t table_shape[2] = {1, 0};
    pagefill_tensor page_table;
    project(query_data, kQHeads * kHeadDim, step, 0.0f);
    project(new_key, kKvHeads * kHeadDim, step, 1.0f);
    project(new_value, kKvHeads * kHeadDim, step, 2.0f);

    /* Nobody shares the pages of this sequence, so there is never a page to copy. */
    check(pagefill_page_allocator_append(allocator, sequence, 1, &copy, &num_copies));
    check(pagefill_page_allocator_get_sequence(allocator, sequence, &info));
    context_lens_data[0] = (int32_t)info.context_len;
    table_shape[1] = info.num_pages;
    page_table = pagefill_tensor_init((void*)info.page_indices, PAGEFILL_INT32, 2, table_shape);
    check(pagefill_append_kv(&keys, &values, &key_cache, &value_cache, &query_starts, &context_lens,
                             &page_table, NULL, NULL));
    check(pagefill_ragged_page_attention(&query, &key_cache, &value_cache, &query_starts,
                                         &context_lens, &page_table, &options, &output, &lse,
                                         NULL));
    printf("token %2d, %d pages: lse", step, (int)info.num_pages);
    for (h = 0; h < kQHeads; ++h) printf(" %8.4f", (double)lse_data[h]);
    printf(", output %8.4f %8.4f ...\n", (double)output_data[0], (double)output_data[1]);
  }
  pagefill_page_allocator_destroy(allocator);
  return 0;
}
