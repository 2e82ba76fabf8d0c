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
  EXPECT_EQ(copy_pages({}, caches.key_cache, caches.value_cache, {.num_threads = -2})
                .message()
                .rfind("num_threads: ", 0),
            0u);
  EXPECT_EQ(caches.memory, before);
}

}  // namespace
}  // namespace pagefill::testing
