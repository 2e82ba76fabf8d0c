/* One sequence in a paged cache, the formula for it, and CHECK. */
#ifndef PAGEFILL_TESTS_C_API_FIXTURE_H_
#define PAGEFILL_TESTS_C_API_FIXTURE_H_

#include <math.h>
#include <pagefill/pagefill.h>
#include <stdio.h>
#include <string.h>

/* Not assert(): that vanishes under NDEBUG. */
#define CHECK(condition)                                                                      \
  do {                                                                                        \
    if (!(condition)) {                                                                       \
      fprintf(stderr, "%s:%d: expected %s; last error: %s\n", __FILE__, __LINE__, #condition, \
              pagefill_last_error_message());                                                 \
      return 1;                                                                               \
    }                                                                                         \
  } while (0)
#define CHECK_OK(call) CHECK((call) == PAGEFILL_OK)

enum {
  kChunk = 3,
  kContext = 5,
  kQHeads = 2,
  kKvHeads = 2,
  kHeadDim = 8,
  kVHeadDim = 16,
  kPages = 4,
  kPageSize = 2,
  kTablePages = 3
};

/* One sequence of five tokens, three of them new, in pages 2, 0 and 3 of a cache. */
typedef struct fixture {
  float query_data[kChunk * kQHeads * kHeadDim];
  float key_data[kKvHeads * kPages * kPageSize * kHeadDim];
  float value_data[kKvHeads * kPages * kPageSize * kVHeadDim];
  float output_data[kChunk * kQHeads * kVHeadDim];
  float lse_data[kChunk * kQHeads];
  int32_t context_len_data[1], page_indices_data[kTablePages], query_starts_data[2];
  pagefill_tensor query, key_cache, value_cache, output, lse;
  pagefill_tensor context_len, page_indices, query_starts, page_table;
} fixture;

static pagefill_tensor tensor1(void* data, int32_t dtype, int64_t d0) {
  return pagefill_tensor_init(data, dtype, 1, &d0);
}

static pagefill_tensor tensor3(void* data, int64_t d0, int64_t d1, int64_t d2) {
  const int64_t shape[3] = {d0, d1, d2};
  return pagefill_tensor_init(data, PAGEFILL_FLOAT32, 3, shape);
}

static pagefill_tensor cache(void* data, int64_t dim) {
  const int64_t shape[4] = {kKvHeads, kPages, kPageSize, dim};
  return pagefill_tensor_init(data, PAGEFILL_FLOAT32, 4, shape);
}

static void fill(float* data, int n, float seed) {
  int i;
  for (i = 0; i < n; ++i) data[i] = sinf(seed + 1.7f * (float)i);
}

static void set_up(fixture* f) {
  static const int32_t pages[kTablePages] = {2, 0, 3};
  static const int64_t lse_shape[2] = {kChunk, kQHeads}, table_shape[2] = {1, kTablePages};
  memset(f, 0, sizeof *f);
  fill(f->query_data, kChunk * kQHeads * kHeadDim, 0.3f);
  fill(f->key_data, kKvHeads * kPages * kPageSize * kHeadDim, 1.1f);
  fill(f->value_data, kKvHeads * kPages * kPageSize * kVHeadDim, 2.9f);
  memcpy(f->page_indices_data, pages, sizeof pages);
  f->context_len_data[0] = kContext;
  f->query_starts_data[1] = kChunk;
  f->query = tensor3(f->query_data, kChunk, kQHeads, kHeadDim);
  f->key_cache = cache(f->key_data, kHeadDim);
  f->value_cache = cache(f->value_data, kVHeadDim);
  f->output = tensor3(f->output_data, kChunk, kQHeads, kVHeadDim);
  f->lse = pagefill_tensor_init(f->lse_data, PAGEFILL_FLOAT32, 2, lse_shape);
  f->context_len = tensor1(f->context_len_data, PAGEFILL_INT32, 1);
  f->page_indices = tensor1(f->page_indices_data, PAGEFILL_INT32, kTablePages);
  f->query_starts = tensor1(f->query_starts_data, PAGEFILL_INT32, 2);
  f->page_table = pagefill_tensor_init(f->page_indices_data, PAGEFILL_INT32, 2, table_shape);
}

/* What the formula's options are when all are given. */
typedef struct formula {
  double scale, cap, mask_value, sink;
  int window, kv_start, masked_count, has_cap, has_sink;
} formula;

static formula plain_formula(void) {
  formula o;
  memset(&o, 0, sizeof o);
  o.scale = 1 / sqrt((double)kHeadDim);
  o.window = kContext;
  return o;
}

/* The formula for one row; also its lse. */
static double expected(const fixture* f, const formula* o, int i, int h, double* row) {
  const int p = kContext - kChunk + i;
  double sum = o->has_sink ? exp(o->sink) : 0;
  int j, d;
  for (d = 0; d < kVHeadDim; ++d) row[d] = 0;
  for (j = o->kv_start; j < kContext; ++j) {
    const int visible = j <= p && j > p - o->window;
    const int token = j - o->kv_start;
    const int page = h * kPages + f->page_indices_data[token / kPageSize];
    const int slot = page * kPageSize + token % kPageSize;
    double s = 0, w;
    if (!visible && !o->masked_count) continue;
    for (d = 0; d < kHeadDim; ++d) {
      s += (double)f->query_data[(i * kQHeads + h) * kHeadDim + d] *
           (double)f->key_data[slot * kHeadDim + d];
    }
    s *= o->scale;
    if (o->has_cap) s = o->cap * tanh(s / o->cap);
    if (!visible) s += o->mask_value;
    w = exp(s);
    sum += w;
    for (d = 0; d < kVHeadDim; ++d) row[d] += w * (double)f->value_data[slot * kVHeadDim + d];
  }
  for (d = 0; d < kVHeadDim; ++d) row[d] /= sum;
  return log(sum);
}

/* Some tens of float32 roundings of values of size 1. */
static int close_to(float got, double wanted) { return fabs((double)got - wanted) < 1e-5; }

static int check_result(const fixture* f, const formula* o) {
  double row[kVHeadDim];
  int i, h, d;
  for (i = 0; i < kChunk; ++i) {
    for (h = 0; h < kQHeads; ++h) {
      CHECK(close_to(f->lse_data[i * kQHeads + h], expected(f, o, i, h, row)));
      for (d = 0; d < kVHeadDim; ++d) {
        CHECK(close_to(f->output_data[(i * kQHeads + h) * kVHeadDim + d], row[d]));
      }
    }
  }
  return 0;
}

#endif /* PAGEFILL_TESTS_C_API_FIXTURE_H_ */
