// Promise 5: 64-bit addressing. The tensors are sparse: zeros without memory behind them, but for
// the few slots that matter. An address cut to 32 bits lands in zeros, or on no memory at all.
#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "support/buffer.h"
#include "support/elements.h"
#include "support/oracle.h"
#include "support/run.h"
#include "support/tolerance.h"

namespace pagefill::testing {
namespace {

constexpr int64_t k2To31 = int64_t{1} << 31;
constexpr int64_t k2To32 = int64_t{1} << 32;

// A tensor whose elements lie as far apart as `strides` say.
struct SparseTensor {
  SparseTensor(DType element, std::array<int64_t, 4> extents,
               std::array<int64_t, 4> element_strides)
      : dtype(element), shape(extents), strides(element_strides), memory(size()) {}

  size_t size() const {
    int64_t last = 0;
    for (int i = 0; i < 4; ++i) last += (shape[i] - 1) * strides[i];
    return static_cast<size_t>((last + 1) * dtype_size(dtype));
  }
  void put(int64_t a, int64_t b, int64_t c, const float* row) {
    for (int64_t d = 0; d < shape[3]; ++d) {
      store(memory.data(), dtype, a * strides[0] + b * strides[1] + c * strides[2] + d, row[d]);
    }
  }
  TensorView view() const {
    return {memory.data(),
            dtype,
            {shape[0], shape[1], shape[2], shape[3]},
            {strides[0], strides[1], strides[2], 1}};
  }
  // Without the first dimension, which is 1: query and output.
  MutableTensorView rows() const {
    return {memory.data(), dtype, {shape[1], shape[2], shape[3]}, {strides[1], strides[2], 1}};
  }

  DType dtype;
  std::array<int64_t, 4> shape, strides;
  SparseMemory memory;
};

struct FarApart {
  int64_t page_size;
  std::vector<int32_t> pages;  // physical, of the sequence
  int64_t total_num_pages;
  std::array<int64_t, 4> cache_strides;
  std::array<int64_t, 4> row_strides = {0, 2 * 16, 16, 1};  // query and output
};

void expect_right(const FarApart& far, DType dtype) {
  const Problem problem = random_problem({.sequences = {{3, 11}},
                                          .num_q_heads = 2,
                                          .num_kv_heads = 2,
                                          .head_dim = 16,
                                          .query_dtype = dtype,
                                          .cache_dtype = dtype});
  const Sequence& seq = problem.sequences[0];
  const std::array<int64_t, 4> cache_shape = {2, far.total_num_pages, far.page_size, 16};
  SparseTensor keys(dtype, cache_shape, far.cache_strides);
  SparseTensor values(dtype, cache_shape, far.cache_strides);
  for (int64_t key = 0; key < seq.context_len; ++key) {
    for (int64_t h = 0; h < 2; ++h) {
      const int64_t page = far.pages[key / far.page_size], slot = key % far.page_size;
      keys.put(h, page, slot, &seq.keys[(key * 2 + h) * 16]);
      values.put(h, page, slot, &seq.values[(key * 2 + h) * 16]);
    }
  }
  SparseTensor query(dtype, {1, 3, 2, 16}, far.row_strides);
  SparseTensor output(dtype, {1, 3, 2, 16}, far.row_strides);
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t h = 0; h < 2; ++h) query.put(0, i, h, &seq.query[(i * 2 + h) * 16]);
  }

  const std::vector<int32_t> context_len = {11};
  const Expected expected = oracle(problem);
  for (const Where& where : host_targets()) {
    SCOPED_TRACE(describe(where) + ", " + dtype_name(dtype));
    Results got{dtype,
                2,
                16,
                std::vector<std::byte>(3 * 2 * 16 * dtype_size(dtype)),
                std::vector<float>(6),
                {CallReport()}};
    Context context;
    context.backend = where.backend;
    context.cpu_target = where.target;
    context.num_threads = 1;
    context.report = &got.reports[0];
    const Status status =
        prefill_page_attention(query.rows(), keys.view(), values.view(), context_len, far.pages, {},
                               {output.rows(), MutableTensorView(got.lse.data(), {3, 2})}, context);
    ASSERT_TRUE(status.ok()) << status.message();
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t h = 0; h < 2; ++h) {
        for (int64_t d = 0; d < 16; ++d) {
          const double x = load(output.memory.data(), dtype,
                                i * far.row_strides[1] + h * far.row_strides[2] + d);
          store(got.output.data(), dtype, (i * 2 + h) * 16 + d, static_cast<float>(x));
        }
      }
    }
    expect_close(got, expected, problem);
  }
}

void expect_right_for_all_dtypes(const FarApart& far) {
  for (DType dtype : kFloatDTypes) expect_right(far, dtype);
}

TEST(Addressing, PagesBeyond2To31And2To32Elements) {
  // Pages of 4 slots of 16: page n begins at element 64 n of each head.
  const auto page_at = [](int64_t element) { return static_cast<int32_t>(element / 64); };
  const int64_t pages = k2To32 / 64 + 5;
  expect_right_for_all_dtypes(
      {.page_size = 4,
       .pages = {page_at(k2To31) + 1, page_at(k2To32) + 2, page_at(k2To32) - 1},
       .total_num_pages = pages,
       .cache_strides = {pages * 64, 64, 16, 1}});
}

TEST(Addressing, BytesBeyond2To31And2To32) {
  // 2^29 to 2^31 elements: the offsets in bytes cross 2^31 and 2^32, those in elements do not.
  const auto page_at = [](int64_t element) { return static_cast<int32_t>(element / 64); };
  const int64_t pages = k2To31 / 64 - 5;
  expect_right_for_all_dtypes(
      {.page_size = 4,
       .pages = {page_at(k2To31 / 4) + 1, page_at(k2To31 / 2) + 2, page_at(k2To31) - 6},
       .total_num_pages = pages,
       .cache_strides = {pages * 64, 64, 16, 1}});
}

TEST(Addressing, HeadsBeyond2To32Elements) {
  expect_right_for_all_dtypes({.page_size = 4,
                               .pages = {2, 0, 1},
                               .total_num_pages = 3,
                               .cache_strides = {k2To32 + 192, 64, 16, 1}});
}

TEST(Addressing, SlotsBeyond2To32Elements) {
  // One page whose 11 slots lie 2^29 apart.
  expect_right_for_all_dtypes({.page_size = 11,
                               .pages = {0},
                               .total_num_pages = 1,
                               .cache_strides = {16, 32, k2To32 / 8, 1}});
}

TEST(Addressing, QueryAndOutputRowsBeyond2To32Elements) {
  expect_right_for_all_dtypes({.page_size = 4,
                               .pages = {2, 0, 1},
                               .total_num_pages = 3,
                               .cache_strides = {192, 64, 16, 1},
                               .row_strides = {0, k2To32 / 2 + 32, 16, 1}});
  expect_right_for_all_dtypes({.page_size = 4,
                               .pages = {2, 0, 1},
                               .total_num_pages = 3,
                               .cache_strides = {192, 64, 16, 1},
                               .row_strides = {0, 16, k2To32 + 48, 1}});
}

}  // namespace
}  // namespace pagefill::testing
