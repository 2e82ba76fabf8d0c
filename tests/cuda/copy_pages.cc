// copy_pages on a device does what it does on the CPU, copy after copy.
#include <numeric>
#include <random>

#include "cuda/device_run.h"
#include "pagefill/kv_cache.h"

namespace pagefill::testing {
namespace {

constexpr int64_t kHeads = 3, kPages = 40, kSlots = 5;

MutableTensorView on_device(DeviceCopies& copies, const std::vector<float>& numbers,
                            MutableTensorView view) {
  view.data = copies.copy(numbers.data(), numbers.size() * sizeof(float));
  view.device = {DeviceType::kCuda, 0};
  return view;
}

// Caches whose rows are `head_dim` numbers, the values' one of them `padding` numbers further.
void expect_same(int64_t head_dim, int64_t padding, const std::vector<PageCopy>& pages) {
  const int64_t v_row = head_dim + padding;
  std::vector<float> keys(static_cast<size_t>(kHeads * kPages * kSlots * head_dim));
  std::vector<float> values(static_cast<size_t>(kHeads * kPages * kSlots * v_row));
  std::iota(keys.begin(), keys.end(), 1.0f);
  std::iota(values.begin(), values.end(), 0.5f);
  MutableTensorView key_cache(keys.data(), {kHeads, kPages, kSlots, head_dim});
  MutableTensorView value_cache(values.data(), {kHeads, kPages, kSlots, head_dim});
  value_cache.strides[0] = kPages * kSlots * v_row, value_cache.strides[1] = kSlots * v_row;
  value_cache.strides[2] = v_row;

  DeviceCopies memory;
  const MutableTensorView device_keys = on_device(memory, keys, key_cache);
  const MutableTensorView device_values = on_device(memory, values, value_cache);
  Context context;
  context.backend = "cuda";
  const Status status = copy_pages(pages, device_keys, device_values, {}, context);
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  ASSERT_TRUE(copy_pages(pages, key_cache, value_cache).ok());
  for (const auto& [expected, device] :
       {std::pair{&keys, device_keys.data}, std::pair{&values, device_values.data}}) {
    std::vector<float> got(expected->size());
    ASSERT_TRUE(cli::copy_to_host(reinterpret_cast<std::byte*>(got.data()),
                                  static_cast<const std::byte*>(device), got.size() * sizeof(float))
                    .ok());
    EXPECT_EQ(got, *expected) << head_dim << ", " << padding;
  }
}

TEST(CudaCopyPages, CopiesWhatTheCpuCopies) {
  PAGEFILL_NEEDS_GPU();
  for (const int64_t head_dim : {8, 24, 128}) {
    for (const int64_t padding : {0, 1, 2})
      expect_same(head_dim, padding, {{0, 5, 3}, {2, 1, 5}, {4, 3, 0}});
  }
}

TEST(CudaCopyPages, ACopyOfACopyComesAfterIt) {
  PAGEFILL_NEEDS_GPU();
  expect_same(16, 0, {{0, 1, 5}, {1, 2, 4}, {3, 1, 2}, {2, 0, 5}});
  std::mt19937 random(7);
  std::vector<PageCopy> many;
  for (int i = 0; i < 500; ++i) {
    const auto source = static_cast<int32_t>(random() % kPages);
    const auto step = static_cast<int32_t>(1 + random() % (kPages - 1));
    many.push_back({source, static_cast<int32_t>((source + step) % kPages),
                    static_cast<int32_t>(random() % (kSlots + 1))});
  }
  expect_same(8, 0, many);
}

}  // namespace
}  // namespace pagefill::testing
