// copy_pages: what the allocator asks for before a shared page is written.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "append_case.h"

namespace pagefill::testing {
namespace {

constexpr int64_t kHeads = 2, kPages = 6, kSlots = 5, kHeadDim = 8, kVHeadDim = 16;

// Two caches in which every element has a number of its own.
struct NumberedCaches {
  explicit NumberedCaches(CacheOrder order) {
    const CacheStrides strides = cache_strides(order, kHeads, kPages, kSlots, kHeadDim, kVHeadDim);
    const bool fused = strides.value_elements == 0;
    memory.resize(static_cast<size_t>(strides.key_elements + strides.value_elements));
    std::iota(memory.begin(), memory.end(), 1.0f);
    float* values = memory.data() + (fused ? strides.value_offset : strides.key_elements);
    key_cache = MutableTensorView(memory.data(), {kHeads, kPages, kSlots, kHeadDim});
    value_cache = MutableTensorView(values, {kHeads, kPages, kSlots, kVHeadDim});
    std::copy(strides.key.begin(), strides.key.end(), key_cache.strides.begin());
    std::copy(strides.value.begin(), strides.value.end(), value_cache.strides.begin());
  }

  // One element at a time.
  void copy(const PageCopy& page) {
    for (const MutableTensorView* cache : {&key_cache, &value_cache}) {
      auto* data = static_cast<float*>(cache->data);
      for (int64_t head = 0; head < kHeads; ++head) {
        for (int64_t slot = 0; slot < page.num_slots; ++slot) {
          for (int64_t d = 0; d < cache->shape[3]; ++d) {
            const int64_t in_page = head * cache->strides[0] + slot * cache->strides[2] + d;
            data[page.destination * cache->strides[1] + in_page] =
                data[page.source * cache->strides[1] + in_page];
          }
        }
      }
    }
  }

  std::vector<float> memory;
  MutableTensorView key_cache, value_cache;
};

TEST(CopyPages, CopiesTheFirstSlotsOfEveryHeadAndNothingElse) {
  const std::vector<PageCopy> copies = {{0, 5, 3}, {2, 1, 5}, {4, 3, 0}};
  for (CacheOrder order : kCacheOrders) {
    NumberedCaches caches(order), expected(order);
    const Status status = copy_pages(copies, caches.key_cache, caches.value_cache);
    ASSERT_TRUE(status.ok()) << status.message();
    for (const PageCopy& copy : copies) expected.copy(copy);
    EXPECT_EQ(caches.memory, expected.memory) << "cache order " << static_cast<int>(order);
  }
}

TEST(CopyPages, CarriesThemOutInTheirOrder) {
  const std::vector<PageCopy> copies = {{0, 1, 4}, {1, 2, 2}, {3, 1, 3}};
  NumberedCaches caches(CacheOrder::kTokenMajor), expected(CacheOrder::kTokenMajor);
  ASSERT_TRUE(copy_pages(copies, caches.key_cache, caches.value_cache).ok());
  for (const PageCopy& copy : copies) expected.copy(copy);
  EXPECT_EQ(caches.memory, expected.memory);
}

// The copies as numbers of a tensor: side by side, or each kind of number together.
TEST(CopyPages, TakesTheCopiesFromATensorToo) {
  const std::vector<PageCopy> copies = {{0, 1, 4}, {1, 2, 2}, {3, 1, 3}};
  const std::vector<int32_t> rows = {0, 1, 4, 1, 2, 2, 3, 1, 3},
                             columns = {0, 1, 3, 1, 2, 1, 4, 2, 3};
  NumberedCaches expected(CacheOrder::kTokenMajor);
  for (const PageCopy& copy : copies) expected.copy(copy);
  for (const TensorView& listed :
       {TensorView(rows.data(), {3, 3}), TensorView(columns.data(), {3, 3}, {1, 3})}) {
    NumberedCaches caches(CacheOrder::kTokenMajor);
    const Status status = copy_pages({}, caches.key_cache, caches.value_cache, {.copies = listed});
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(caches.memory, expected.memory);
  }
}

TEST(CopyPages, NamesWhatIsWrongWithATensorOfCopies) {
  std::vector<int32_t> numbers = {0, 1, 4, 1, 6, 2};
  NumberedCaches caches(CacheOrder::kHeadMajor);
  const std::vector<float> before = caches.memory;
  const auto message = [&](const TensorView& listed, const std::vector<PageCopy>& copies = {}) {
    return copy_pages(copies, caches.key_cache, caches.value_cache, {.copies = listed}).message();
  };
  const TensorView listed(numbers.data(), {2, 3});
  EXPECT_EQ(message(listed), "copies: expected a destination from 0 to 5, got 6 in copy 1");
  EXPECT_EQ(message(listed, {{0, 1, 1}}),
            "copies: expected a list or options.copies, got both, the list of 1");
  EXPECT_EQ(message(TensorView(numbers.data(), {3, 2})),
            "copies: expected shape [num_copies, 3], got [3, 2]");
  EXPECT_EQ(message(TensorView(before.data(), {2, 3})),
            "copies: expected dtype int32, got float32");
  EXPECT_EQ(message(TensorView(numbers.data(), {int64_t{1} << 31, 3}, {0, 1})),
            "copies: expected num_copies up to 2147483647, got 2147483648");
  EXPECT_EQ(message(TensorView(reinterpret_cast<int32_t*>(caches.memory.data()), {2, 3})),
            "key_cache: expected memory of its own, got memory that overlaps copies");
  TensorView elsewhere = listed;
  elsewhere.device = {DeviceType::kCuda, 0};
  EXPECT_EQ(message(elsewhere),
            "copies: expected memory of the CPU, where key_cache is, got memory of CUDA device 0");
  EXPECT_EQ(caches.memory, before);
}

// An int8 cache with a number of its own in every slot's scale.
TEST(CopyPages, MovesTheScalesOfTheSlotsWithThem) {
  const std::vector<PageCopy> copies = {{0, 5, 3}, {5, 1, 2}};
  std::vector<int8_t> keys(kHeads * kPages * kSlots * kHeadDim), values = keys;
  const MutableTensorView cache(keys.data(), {kHeads, kPages, kSlots, kHeadDim});
  const MutableTensorView value_cache(values.data(), {kHeads, kPages, kSlots, kHeadDim});
  std::vector<float> key_scale(kHeads * kPages * kSlots), value_scale = key_scale;
  std::iota(key_scale.begin(), key_scale.end(), 1.0f);
  std::iota(value_scale.begin(), value_scale.end(), 1000.0f);
  std::vector<float> expected_key = key_scale, expected_value = value_scale;
  for (const PageCopy& copy : copies) {
    for (int64_t head = 0; head < kHeads; ++head) {
      for (int64_t slot = 0; slot < copy.num_slots; ++slot) {
        // Keys' scales are head-major, values' token-major.
        const auto at = [&](int64_t page) { return (head * kPages + page) * kSlots + slot; };
        const auto token = [&](int64_t page) { return (page * kSlots + slot) * kHeads + head; };
        expected_key[at(copy.destination)] = expected_key[at(copy.source)];
        expected_value[token(copy.destination)] = expected_value[token(copy.source)];
      }
    }
  }
  const Status status = copy_pages(copies, cache, value_cache,
                                   {MutableTensorView(key_scale.data(), {kHeads, kPages, kSlots}),
                                    MutableTensorView(value_scale.data(), {kHeads, kPages, kSlots},
                                                      {1, kSlots * kHeads, kHeads})});
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(key_scale, expected_key);
  EXPECT_EQ(value_scale, expected_value);
}

TEST(CopyPages, NamesWhatIsWrongWithScales) {
  std::vector<int8_t> memory(2 * kPages * kSlots * 8);
  const MutableTensorView keys(memory.data(), {1, kPages, kSlots, 8});
  const MutableTensorView values(memory.data() + kPages * kSlots * 8, {1, kPages, kSlots, 8});
  std::vector<float> scales(kPages * kSlots);
  const MutableTensorView scale(scales.data(), {1, kPages, kSlots});
  EXPECT_EQ(copy_pages({}, keys, values, {MutableTensorView(scales.data(), {1}), {}}).message(),
            "key_scale: expected shape [num_kv_heads=1, total_num_pages=6, page_size=5], got [1]");
  EXPECT_EQ(copy_pages({}, keys, values, {scale, scale}).message(),
            "value_scale: expected memory of its own, got memory that overlaps key_scale");
  NumberedCaches floats(CacheOrder::kHeadMajor);
  EXPECT_EQ(copy_pages({}, floats.key_cache, floats.value_cache, {{}, scale}).message(),
            "value_scale: expected none, as value_cache is float32 and not quantised, got "
            "[1, 6, 5]");
}

TEST(CopyPages, OfNoneDoesNothing) {
  NumberedCaches caches(CacheOrder::kHeadMajor);
  const std::vector<float> before = caches.memory;
  ASSERT_TRUE(copy_pages({}, caches.key_cache, caches.value_cache).ok());
  EXPECT_EQ(caches.memory, before);
}

TEST(CopyPages, NamesWhatIsWrongAndCopiesNothing) {
  struct BadCopy {
    PageCopy copy;
    const char* message;
  };
  const BadCopy table[] = {
      {{-1, 1, 1}, "copies: expected a source from 0 to 5, got -1 in copy 1"},
      {{6, 1, 1}, "copies: expected a source from 0 to 5, got 6 in copy 1"},
      {{0, -1, 1}, "copies: expected a destination from 0 to 5, got -1 in copy 1"},
      {{0, 6, 1}, "copies: expected a destination from 0 to 5, got 6 in copy 1"},
      {{0, 1, -1}, "copies: expected num_slots from 0 to 5, got -1 in copy 1"},
      {{0, 1, 6}, "copies: expected num_slots from 0 to 5, got 6 in copy 1"},
      {{3, 3, 1}, "copies: expected a destination other than the source, got page 3 in copy 1"},
  };
  NumberedCaches caches(CacheOrder::kHeadMajor);
  const std::vector<float> before = caches.memory;
  for (const BadCopy& bad : table) {
    const std::vector<PageCopy> copies = {{0, 1, 5}, bad.copy};
    EXPECT_EQ(copy_pages(copies, caches.key_cache, caches.value_cache).message(), bad.message);
  }
  MutableTensorView wrong = caches.value_cache;
  wrong.shape[1] = 5;
  EXPECT_EQ(copy_pages({}, caches.key_cache, wrong).message().rfind("value_cache: ", 0), 0u);
  EXPECT_EQ(copy_pages({}, {}, wrong).message().rfind("key_cache: ", 0), 0u);
  EXPECT_EQ(copy_pages({}, caches.key_cache, caches.value_cache, {}, {.num_threads = -2})
                .message()
                .rfind("num_threads: ", 0),
            0u);
  EXPECT_EQ(caches.memory, before);
}

}  // namespace
}  // namespace pagefill::testing
