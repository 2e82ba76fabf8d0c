/* The whole C interface, used as a C99 program does. Every function is called, and what it does is
 * compared with the formula or with what the header says. */
#include <pagefill/pagefill.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fixture.h"

static pagefill_status prefill(const fixture* f, const pagefill_attention_options* options,
                               const pagefill_context* context) {
  return pagefill_prefill_page_attention(&f->query, &f->key_cache, &f->value_cache, &f->context_len,
                                         &f->page_indices, options, &f->output, &f->lse, context);
}

static int test_defaults(void) {
  fixture f;
  const formula plain = plain_formula();
  set_up(&f);
  CHECK_OK(prefill(&f, NULL, NULL));
  CHECK(check_result(&f, &plain) == 0);

  memset(f.output_data, 0, sizeof f.output_data);
  memset(f.lse_data, 0, sizeof f.lse_data);
  CHECK_OK(pagefill_ragged_page_attention(&f.query, &f.key_cache, &f.value_cache, &f.query_starts,
                                          &f.context_len, &f.page_table, NULL, &f.output, &f.lse,
                                          NULL));
  CHECK(check_result(&f, &plain) == 0);
  return 0;
}

static int test_every_option(void) {
  fixture f;
  formula wanted = plain_formula();
  pagefill_attention_options options = pagefill_attention_options_init();
  float sink_data[kQHeads] = {0.5f, 0.5f};
  int32_t kv_start_data[1] = {1};
  const pagefill_tensor sinks = tensor1(sink_data, PAGEFILL_FLOAT32, kQHeads);
  const pagefill_tensor kv_start = tensor1(kv_start_data, PAGEFILL_INT32, 1);
  set_up(&f);

  options.flags = PAGEFILL_HAS_SOFTMAX_SCALE;
  options.softmax_scale = 0.75f;
  wanted.scale = 0.75;
  CHECK_OK(prefill(&f, &options, NULL));
  CHECK(check_result(&f, &wanted) == 0);

  options.flags |= PAGEFILL_HAS_ATTN_LOGITS_SOFT_CAP;
  options.attn_logits_soft_cap = 0.5f;
  wanted.has_cap = 1;
  wanted.cap = 0.5;
  CHECK_OK(prefill(&f, &options, NULL));
  CHECK(check_result(&f, &wanted) == 0);

  options.flags |= PAGEFILL_HAS_SLIDING_WINDOW;
  options.sliding_window = 2;
  wanted.window = 2;
  CHECK_OK(prefill(&f, &options, NULL));
  CHECK(check_result(&f, &wanted) == 0);

  options.sinks = &sinks;
  wanted.has_sink = 1;
  wanted.sink = 0.5;
  CHECK_OK(prefill(&f, &options, NULL));
  CHECK(check_result(&f, &wanted) == 0);

  options.kv_start = &kv_start;
  wanted.kv_start = 1;
  CHECK_OK(prefill(&f, &options, NULL));
  CHECK(check_result(&f, &wanted) == 0);

  options.flags |= PAGEFILL_HAS_MASK_VALUE;
  options.mask_value = -1;
  wanted.masked_count = 1;
  wanted.mask_value = -1;
  CHECK_OK(prefill(&f, &options, NULL));
  CHECK(check_result(&f, &wanted) == 0);
  return 0;
}

static void run_in_turn(void* self, int64_t num_tasks, void (*task)(void*, int64_t),
                        void* argument) {
  int64_t i;
  ++*(int*)self;
  for (i = 0; i < num_tasks; ++i) task(argument, i);
}

static int test_executor_workspace_and_report(void) {
  fixture f;
  const formula plain = plain_formula();
  pagefill_executor executor = pagefill_executor_init();
  pagefill_call_report report = pagefill_call_report_init();
  pagefill_context context = pagefill_context_init();
  int num_calls = 0;
  size_t size = 0;
  char* memory;
  set_up(&f);
  executor.self = &num_calls;
  executor.parallel_for = run_in_turn;
  executor.num_threads = 2;
  context.backend = "cpu";
  context.cpu_target = "auto";
  context.executor = &executor;
  context.report = &report;
  CHECK_OK(pagefill_attention_workspace_size(&f.query, &f.key_cache, &f.value_cache,
                                             &f.query_starts, &f.context_len, &f.page_table, NULL,
                                             &f.output, &f.lse, &context, &size));
  CHECK(size > 0);

  memory = malloc(size + PAGEFILL_WORKSPACE_ALIGNMENT);
  CHECK(memory != NULL);
  context.workspace =
      memory + (PAGEFILL_WORKSPACE_ALIGNMENT - (uintptr_t)memory % PAGEFILL_WORKSPACE_ALIGNMENT);
  context.workspace_size = size;
  CHECK_OK(prefill(&f, NULL, &context));
  CHECK(check_result(&f, &plain) == 0);
  CHECK(num_calls > 0);
  CHECK(strcmp(report.backend, "cpu") == 0);
  CHECK(report.target[0] != '\0');
  CHECK(report.num_threads == 2);
  CHECK(report.workspace_bytes == size);

  context.workspace_size = size - 1;
  CHECK(prefill(&f, NULL, &context) == PAGEFILL_RESOURCE_EXHAUSTED);
  CHECK(strstr(pagefill_last_error_message(), "workspace") != NULL);
  free(memory);
  return 0;
}

static int test_cancel(void) {
  fixture f;
  const formula plain = plain_formula();
  pagefill_context context = pagefill_context_init();
  int32_t cancel = 1;
  set_up(&f);
  context.cancel = &cancel;
  CHECK(prefill(&f, NULL, &context) == PAGEFILL_CANCELLED);
  CHECK(strstr(pagefill_last_error_message(), "cancel") != NULL);
  cancel = 0;
  CHECK_OK(prefill(&f, NULL, &context));
  CHECK(check_result(&f, &plain) == 0);

  /* A program built before there was `cancel` has a shorter struct. */
  cancel = 1;
  context.struct_size = offsetof(pagefill_context, cancel);
  CHECK_OK(prefill(&f, NULL, &context));
  return 0;
}

/* Attention over keys 0 to 3 merged with attention over key 4 is attention over all; for the last row
 * only, which sees all. */
static int test_merge(void) {
  fixture f;
  const formula plain = plain_formula();
  float output_data[2][kQHeads * kVHeadDim], lse_data[2][kQHeads];
  int32_t kv_start_data[1] = {4}, page_data[1] = {3};
  const int64_t lse_shape[2] = {1, kQHeads};
  const pagefill_tensor kv_start = tensor1(kv_start_data, PAGEFILL_INT32, 1);
  const pagefill_tensor last_page = tensor1(page_data, PAGEFILL_INT32, 1);
  pagefill_attention_options options = pagefill_attention_options_init();
  pagefill_tensor query, output[2], lse[2];
  double row[kVHeadDim];
  int i, h, d;
  set_up(&f);
  query = tensor3(f.query_data + 2 * kQHeads * kHeadDim, 1, kQHeads, kHeadDim);
  for (i = 0; i < 2; ++i) {
    output[i] = tensor3(output_data[i], 1, kQHeads, kVHeadDim);
    lse[i] = pagefill_tensor_init(lse_data[i], PAGEFILL_FLOAT32, 2, lse_shape);
  }
  f.context_len_data[0] = 4;
  CHECK_OK(pagefill_prefill_page_attention(&query, &f.key_cache, &f.value_cache, &f.context_len,
                                           &f.page_indices, NULL, &output[0], &lse[0], NULL));
  f.context_len_data[0] = 5;
  options.kv_start = &kv_start;
  CHECK_OK(pagefill_prefill_page_attention(&query, &f.key_cache, &f.value_cache, &f.context_len,
                                           &last_page, &options, &output[1], &lse[1], NULL));
  CHECK_OK(pagefill_merge_attention_states(&output[0], &lse[0], &output[1], &lse[1], &output[0],
                                           &lse[0], NULL));
  for (h = 0; h < kQHeads; ++h) {
    CHECK(close_to(lse_data[0][h], expected(&f, &plain, 2, h, row)));
    for (d = 0; d < kVHeadDim; ++d) {
      CHECK(close_to(output_data[0][h * kVHeadDim + d], row[d]));
    }
  }
  return 0;
}

static int same_row(const float* cache_row, const float* new_row, int dim) {
  return memcmp(cache_row, new_row, (size_t)dim * sizeof(float)) == 0;
}

static int test_append_and_copy(void) {
  fixture f;
  float keys_data[kChunk * kKvHeads * kHeadDim], values_data[kChunk * kKvHeads * kVHeadDim];
  const pagefill_tensor keys = tensor3(keys_data, kChunk, kKvHeads, kHeadDim);
  const pagefill_tensor values = tensor3(values_data, kChunk, kKvHeads, kVHeadDim);
  /* The new tokens are 2, 3 and 4: page 0, slots 0 and 1, and page 3, slot 0. */
  static const int slots[kChunk] = {0, 1, 6};
  const pagefill_page_copy copy = {0, 1, 1}; /* the first slot of page 0 to page 1 */
  int i, h;
  set_up(&f);
  fill(keys_data, kChunk * kKvHeads * kHeadDim, 5.0f);
  fill(values_data, kChunk * kKvHeads * kVHeadDim, 6.0f);
  CHECK_OK(pagefill_append_kv(&keys, &values, &f.key_cache, &f.value_cache, &f.query_starts,
                              &f.context_len, &f.page_table, NULL, NULL));
  CHECK_OK(pagefill_copy_pages(&copy, 1, &f.key_cache, &f.value_cache, NULL, NULL));
  CHECK_OK(pagefill_copy_pages(NULL, 0, &f.key_cache, &f.value_cache, NULL, NULL));
  for (h = 0; h < kKvHeads; ++h) {
    const float* k = f.key_data + h * kPages * kPageSize * kHeadDim;
    const float* v = f.value_data + h * kPages * kPageSize * kVHeadDim;
    for (i = 0; i < kChunk; ++i) {
      const int row = i * kKvHeads + h;
      CHECK(same_row(k + slots[i] * kHeadDim, keys_data + row * kHeadDim, kHeadDim));
      CHECK(same_row(v + slots[i] * kVHeadDim, values_data + row * kVHeadDim, kVHeadDim));
    }
    CHECK(same_row(k + kPageSize * kHeadDim, keys_data + h * kHeadDim, kHeadDim));
    CHECK(same_row(v + kPageSize * kVHeadDim, values_data + h * kVHeadDim, kVHeadDim));
  }
  return 0;
}

/* The whole context quantised with scales that append_kv chooses, and attention to it: the formula over
 * what was stored, times its scale. */
static int test_quantised(void) {
  fixture f;
  formula plain = plain_formula();
  float keys_data[kContext * kKvHeads * kHeadDim], values_data[kContext * kKvHeads * kVHeadDim];
  int8_t key8[kKvHeads * kPages * kPageSize * kHeadDim];
  int8_t value8[kKvHeads * kPages * kPageSize * kVHeadDim];
  float key_scale_data[kKvHeads * kPages * kPageSize];
  float value_scale_data[kKvHeads * kPages * kPageSize];
  static int32_t starts[2] = {0, kContext};
  const pagefill_tensor keys = tensor3(keys_data, kContext, kKvHeads, kHeadDim);
  const pagefill_tensor values = tensor3(values_data, kContext, kKvHeads, kVHeadDim);
  const pagefill_tensor query_starts = tensor1(starts, PAGEFILL_INT32, 2);
  const pagefill_tensor key_scale = tensor3(key_scale_data, kKvHeads, kPages, kPageSize);
  const pagefill_tensor value_scale = tensor3(value_scale_data, kKvHeads, kPages, kPageSize);
  pagefill_tensor key_cache = cache(key8, kHeadDim), value_cache = cache(value8, kVHeadDim);
  pagefill_append_options append = pagefill_append_options_init();
  pagefill_copy_options copied = pagefill_copy_options_init();
  pagefill_attention_options options = pagefill_attention_options_init();
  const pagefill_page_copy copy = {2, 1, kPageSize}; /* page 1 belongs to nobody */
  static int32_t copy_numbers[3] = {2, 1, kPageSize};
  const int64_t copies_shape[2] = {1, 3};
  const pagefill_tensor copies =
      pagefill_tensor_init(copy_numbers, PAGEFILL_INT32, 2, copies_shape);
  int i, h;
  set_up(&f);
  memset(key8, 0, sizeof key8);
  memset(value8, 0, sizeof value8);
  memset(key_scale_data, 0, sizeof key_scale_data);
  memset(value_scale_data, 0, sizeof value_scale_data);
  fill(keys_data, kContext * kKvHeads * kHeadDim, 5.0f);
  fill(values_data, kContext * kKvHeads * kVHeadDim, 6.0f);
  key_cache.dtype = value_cache.dtype = PAGEFILL_INT8;
  append.chosen_key_scale = &key_scale;
  append.chosen_value_scale = &value_scale;
  CHECK_OK(pagefill_append_kv(&keys, &values, &key_cache, &value_cache, &query_starts,
                              &f.context_len, &f.page_table, &append, NULL));
  copied.key_scale = &key_scale;
  copied.value_scale = &value_scale;
  CHECK_OK(pagefill_copy_pages(&copy, 1, &key_cache, &value_cache, &copied, NULL));
  copied.copies = &copies; /* the same again, as numbers of a tensor */
  CHECK_OK(pagefill_copy_pages(NULL, 0, &key_cache, &value_cache, &copied, NULL));
  for (h = 0; h < kKvHeads; ++h) {
    const float* scale = key_scale_data + h * kPages * kPageSize;
    CHECK(scale[kPageSize] > 0 && scale[kPageSize] == scale[2 * kPageSize]);
  }
  for (i = 0; i < kKvHeads * kPages * kPageSize * kHeadDim; ++i) {
    f.key_data[i] = key_scale_data[i / kHeadDim] * (float)key8[i];
  }
  for (i = 0; i < kKvHeads * kPages * kPageSize * kVHeadDim; ++i) {
    f.value_data[i] = value_scale_data[i / kVHeadDim] * (float)value8[i];
  }
  options.key_scale = &key_scale;
  options.value_scale = &value_scale;
  CHECK_OK(pagefill_prefill_page_attention(&f.query, &key_cache, &value_cache, &f.context_len,
                                           &f.page_indices, &options, &f.output, &f.lse, NULL));
  return check_result(&f, &plain);
}

static int test_page_allocator(void) {
  pagefill_page_allocator* allocator = NULL;
  pagefill_page_allocator_info info = pagefill_page_allocator_info_init();
  pagefill_sequence_info sequence = pagefill_sequence_info_init();
  pagefill_page_copy copy;
  size_t num_copies = 9;
  int64_t parent = -1, child = -1, count = -1;
  int32_t shared_page;
  CHECK_OK(pagefill_page_allocator_create(4, 2, &allocator));
  CHECK_OK(pagefill_page_allocator_add_sequence(allocator, &parent));
  CHECK_OK(pagefill_page_allocator_get_sequence(allocator, parent, &sequence));
  CHECK(sequence.num_pages == 0 && sequence.page_indices == NULL && sequence.context_len == 0);

  CHECK_OK(pagefill_page_allocator_append(allocator, parent, 3, &copy, &num_copies));
  CHECK(num_copies == 0);
  CHECK_OK(pagefill_page_allocator_fork(allocator, parent, &child));
  CHECK_OK(pagefill_page_allocator_get_sequence(allocator, child, &sequence));
  CHECK(sequence.context_len == 3 && sequence.kv_start == 0 && sequence.num_pages == 2);
  shared_page = sequence.page_indices[1];
  CHECK_OK(pagefill_page_allocator_reference_count(allocator, shared_page, &count));
  CHECK(count == 2);

  CHECK_OK(pagefill_page_allocator_append(allocator, child, 1, &copy, &num_copies));
  CHECK(num_copies == 1 && copy.source == shared_page && copy.num_slots == 1);
  CHECK_OK(pagefill_page_allocator_get_sequence(allocator, child, &sequence));
  CHECK(sequence.page_indices[1] == copy.destination && sequence.context_len == 4);
  CHECK_OK(pagefill_page_allocator_get_info(allocator, &info));
  CHECK(info.total_num_pages == 4 && info.page_size == 2);
  CHECK(info.num_free_pages == 1 && info.num_sequences == 2);
  CHECK(pagefill_page_allocator_append(allocator, child, 3, &copy, &num_copies) ==
        PAGEFILL_RESOURCE_EXHAUSTED);

  CHECK_OK(pagefill_page_allocator_drop_before(allocator, child, 2));
  CHECK_OK(pagefill_page_allocator_truncate(allocator, child, 3));
  CHECK_OK(pagefill_page_allocator_get_sequence(allocator, child, &sequence));
  CHECK(sequence.kv_start == 2 && sequence.context_len == 3 && sequence.num_pages == 1);
  CHECK_OK(pagefill_page_allocator_release(allocator, child));
  CHECK_OK(pagefill_page_allocator_release(allocator, parent));
  CHECK_OK(pagefill_page_allocator_get_info(allocator, &info));
  CHECK(info.num_free_pages == 4 && info.num_sequences == 0);
  CHECK(pagefill_page_allocator_release(allocator, parent) == PAGEFILL_INVALID_ARGUMENT);
  pagefill_page_allocator_destroy(allocator);
  pagefill_page_allocator_destroy(NULL);
  return 0;
}

static int test_backends(void) {
  pagefill_backend_info backend = pagefill_backend_info_init();
  pagefill_target_info target = pagefill_target_info_init();
  pagefill_backend_choice choice = pagefill_backend_choice_init();
  pagefill_context context = pagefill_context_init();
  int32_t num_backends = 0, i, t, found = 0;
  CHECK_OK(pagefill_get_num_backends(&num_backends));
  CHECK(num_backends >= 2);
  for (i = 0; i < num_backends; ++i) {
    CHECK_OK(pagefill_get_backend_info(i, &backend));
    CHECK(backend.memory == PAGEFILL_CPU || backend.memory == PAGEFILL_CUDA);
    CHECK(backend.name[0] != '\0' && backend.description[0] != '\0');
    CHECK((backend.reason[0] == '\0') == (backend.available == 1));
    if (strcmp(backend.name, "reference") == 0) ++found;
    for (t = 0; t < backend.num_targets; ++t) {
      CHECK_OK(pagefill_get_target_info(i, t, &target));
      CHECK(target.name[0] != '\0' && (target.available == 0 || target.available == 1));
    }
    CHECK(pagefill_get_target_info(i, backend.num_targets, &target) == PAGEFILL_INVALID_ARGUMENT);
  }
  CHECK(found == 1);

  context.backend = "reference";
  CHECK_OK(pagefill_choose_backend(&context, &choice));
  CHECK(strcmp(choice.backend, "reference") == 0);
  CHECK(choice.reason[0] != '\0' && choice.num_threads >= 1 && choice.target != NULL);
  CHECK(strcmp(pagefill_version(), PAGEFILL_EXPECTED_VERSION) == 0);
  CHECK(strcmp(pagefill_dtype_name(PAGEFILL_BFLOAT16), "bfloat16") == 0);
  CHECK(strcmp(pagefill_dtype_name(PAGEFILL_FLOAT8_E4M3), "float8_e4m3fn") == 0);
  CHECK(pagefill_dtype_size(PAGEFILL_BFLOAT16) == 2 && pagefill_dtype_size(99) == 0);
  CHECK(pagefill_dtype_size(PAGEFILL_FLOAT8_E5M2) == 1 && pagefill_dtype_size(9) == 0);
  return 0;
}

int main(void) {
  return test_defaults() || test_every_option() || test_executor_workspace_and_report() ||
         test_cancel() || test_merge() || test_append_and_copy() || test_quantised() ||
         test_page_allocator() || test_backends();
}
