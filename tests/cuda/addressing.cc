// Promise 5 on a device: caches beyond 2^31 and 2^32 elements. An address cut to 32 bits lands in NaN.
#include <cmath>

#include "cuda/device_run.h"
#include "support/elements.h"

namespace pagefill::testing {
namespace {

// The last pages of a cache of so many elements hold a sequence; the same keys and values in a small cache
// give the bits to be had.
void expect_addressed(int64_t elements) {
  constexpr int64_t kHeads = 2, kPageSize = 16, kDim = 128, kTokens = 100;
  const int64_t page_elements = kPageSize * kDim;
  const int64_t pages = elements / (kHeads * page_elements) + 8;
  const auto bytes = static_cast<size_t>(kHeads * pages * page_elements * 2);
  size_t free_bytes = 0, all_bytes = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &all_bytes), cudaSuccess);
  if (free_bytes < 2 * bytes + (size_t{1} << 30)) GTEST_SKIP() << "too little device memory";

  const Problem p = random_problem({.sequences = {{9, kTokens}},
                                    .num_q_heads = 4,
                                    .num_kv_heads = kHeads,
                                    .head_dim = kDim,
                                    .query_dtype = DType::kBFloat16,
                                    .cache_dtype = DType::kBFloat16});
  DeviceRun small(p, {{0, 0, 9}});
  small.run();

  const cli::DeviceMemory keys(bytes), values(bytes);
  ASSERT_TRUE(cli::fill_device(keys.data(), 0xff, bytes).ok());
  ASSERT_TRUE(cli::fill_device(values.data(), 0xff, bytes).ok());
  std::vector<std::byte> page(static_cast<size_t>(page_elements * 2));
  std::vector<int32_t> table;
  const int64_t num_pages = (kTokens + kPageSize - 1) / kPageSize;
  for (int64_t i = 0; i < num_pages; ++i) {
    table.push_back(static_cast<int32_t>(pages - 1 - i));
    for (int64_t h = 0; h < kHeads; ++h) {
      for (const bool is_key : {true, false}) {
        const std::vector<float>& from = is_key ? p.sequences[0].keys : p.sequences[0].values;
        for (int64_t e = 0; e < page_elements; ++e) {
          const int64_t token = std::min(i * kPageSize + e / kDim, kTokens - 1);
          store(page.data(), DType::kBFloat16, e,
                from[static_cast<size_t>((token * kHeads + h) * kDim + e % kDim)]);
        }
        std::byte* const to =
            (is_key ? keys : values).data() + (h * pages + table.back()) * page_elements * 2;
        ASSERT_TRUE(cli::copy_to_device(to, page.data(), page.size()).ok());
      }
    }
  }
  DeviceRun large(p, {{0, 0, 9}});
  large.overwrite(large.views().page_table, 0, table);
  const auto cache = [&](const cli::DeviceMemory& memory) {
    TensorView view(memory.data(), DType::kBFloat16, {kHeads, pages, kPageSize, kDim});
    view.device = {DeviceType::kCuda, 0};
    return view;
  };
  large.use_caches(cache(keys), cache(values));
  large.run();
  EXPECT_EQ(large.reported()[0], 0);
  for (int64_t t = 0; t < 9; ++t) {
    for (int64_t h = 0; h < 4; ++h) EXPECT_EQ(large.row(t, h), small.row(t, h)) << t << ", " << h;
  }
}

TEST(CudaAddressing, ACacheOfMoreThanTwoToThe31Elements) {
  PAGEFILL_NEEDS_GPU();
  expect_addressed((int64_t{1} << 31) + 12345);
}

TEST(CudaAddressing, ACacheOfMoreThanTwoToThe32Elements) {
  PAGEFILL_NEEDS_GPU();
  expect_addressed((int64_t{1} << 32) + 12345);
}

}  // namespace
}  // namespace pagefill::testing
