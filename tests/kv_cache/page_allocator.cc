// The page allocator, rule by rule.
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "pagefill/kv_cache.h"

namespace pagefill::testing {
namespace {

using SequenceId = PageAllocator::SequenceId;
using Pages = std::vector<int32_t>;

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

PageAllocator allocator_of(int64_t total_num_pages, int64_t page_size) {
  return std::move(PageAllocator::create(total_num_pages, page_size)).value();
}

Pages pages(const PageAllocator& allocator, SequenceId sequence) {
  const auto view = allocator.page_indices(sequence).value();
  return {view.begin(), view.end()};
}

// A new sequence of that many tokens.
SequenceId add(PageAllocator& allocator, int64_t num_tokens) {
  const SequenceId sequence = *allocator.add_sequence();
  EXPECT_TRUE(allocator.append(sequence, num_tokens).ok());
  return sequence;
}

void expect_copy(const Result<std::vector<PageCopy>>& copies, const PageCopy& expected) {
  ASSERT_TRUE(copies.ok()) << copies.status().message();
  ASSERT_EQ(copies.value().size(), 1u);
  EXPECT_EQ(copies.value()[0].source, expected.source);
  EXPECT_EQ(copies.value()[0].destination, expected.destination);
  EXPECT_EQ(copies.value()[0].num_slots, expected.num_slots);
}

void expect_no_copy(const Result<std::vector<PageCopy>>& copies) {
  ASSERT_TRUE(copies.ok()) << copies.status().message();
  EXPECT_TRUE(copies.value().empty());
}

TEST(PageAllocator, HandsOutPagesAsTokensNeedThem) {
  PageAllocator allocator = allocator_of(4, 3);
  const SequenceId a = *allocator.add_sequence();
  EXPECT_EQ(pages(allocator, a), Pages{});
  EXPECT_EQ(*allocator.context_len(a), 0);
  expect_no_copy(allocator.append(a, 3));
  EXPECT_EQ(pages(allocator, a), Pages{0});
  expect_no_copy(allocator.append(a, 1));
  expect_no_copy(allocator.append(a, 0));
  expect_no_copy(allocator.append(a, 2));
  EXPECT_EQ(pages(allocator, a), (Pages{0, 1}));
  EXPECT_EQ(*allocator.context_len(a), 6);
  EXPECT_EQ(allocator.num_free_pages(), 2);
  EXPECT_EQ(allocator.reference_count(1), 1);
  EXPECT_EQ(allocator.reference_count(2), 0);
}

TEST(PageAllocator, HandsOutFreedPagesInTheirOldOrderBeforeNewOnes) {
  PageAllocator allocator = allocator_of(8, 2);
  const SequenceId a = add(allocator, 6);
  add(allocator, 2);
  ASSERT_TRUE(allocator.release(a).ok());
  EXPECT_EQ(pages(allocator, add(allocator, 10)), (Pages{0, 1, 2, 4, 5}));
}

TEST(PageAllocator, AForkSharesAllPages) {
  PageAllocator allocator = allocator_of(4, 2);
  const SequenceId parent = add(allocator, 5);
  const SequenceId child = *allocator.fork(parent);
  EXPECT_NE(child, parent);
  EXPECT_EQ(pages(allocator, child), pages(allocator, parent));
  EXPECT_EQ(*allocator.context_len(child), 5);
  EXPECT_EQ(allocator.num_free_pages(), 1);
  for (int page : {0, 1, 2}) EXPECT_EQ(allocator.reference_count(page), 2);
  EXPECT_EQ(allocator.num_sequences(), 2);
}

TEST(PageAllocator, OnlyTheFirstWhoAppendsCopiesASharedLastPage) {
  for (bool parent_first : {true, false}) {
    PageAllocator allocator = allocator_of(8, 4);
    const SequenceId parent = add(allocator, 6), child = *allocator.fork(parent);
    const SequenceId first = parent_first ? parent : child, second = parent_first ? child : parent;
    expect_copy(allocator.append(first, 1), {1, 2, 2});
    EXPECT_EQ(pages(allocator, first), (Pages{0, 2}));
    EXPECT_EQ(pages(allocator, second), (Pages{0, 1}));
    EXPECT_EQ(allocator.reference_count(0), 2);
    EXPECT_EQ(allocator.reference_count(1), 1);
    expect_no_copy(allocator.append(second, 3));
    EXPECT_EQ(pages(allocator, second), (Pages{0, 1, 3}));
  }
}

TEST(PageAllocator, NeverCopiesAFullSharedPage) {
  PageAllocator allocator = allocator_of(8, 4);
  const SequenceId parent = add(allocator, 8), child = *allocator.fork(parent);
  expect_no_copy(allocator.append(parent, 1));
  expect_no_copy(allocator.append(child, 1));
  EXPECT_EQ(pages(allocator, parent), (Pages{0, 1, 2}));
  EXPECT_EQ(pages(allocator, child), (Pages{0, 1, 3}));
}

TEST(PageAllocator, CopiesAFullSharedPageThatWasTruncated) {
  PageAllocator allocator = allocator_of(8, 4);
  const SequenceId parent = add(allocator, 8), child = *allocator.fork(parent);
  ASSERT_TRUE(allocator.truncate(child, 7).ok());
  expect_copy(allocator.append(child, 1), {1, 2, 3});
  EXPECT_EQ(pages(allocator, parent), (Pages{0, 1}));
}

TEST(PageAllocator, TruncateFreesPagesThatHoldNothing) {
  PageAllocator allocator = allocator_of(8, 4);
  const SequenceId a = add(allocator, 13);
  ASSERT_TRUE(allocator.truncate(a, 5).ok());
  EXPECT_EQ(pages(allocator, a), (Pages{0, 1}));
  EXPECT_EQ(allocator.num_free_pages(), 6);
  ASSERT_TRUE(allocator.truncate(a, 4).ok());
  EXPECT_EQ(pages(allocator, a), Pages{0});
  ASSERT_TRUE(allocator.truncate(a, 0).ok());
  EXPECT_EQ(allocator.num_free_pages(), 8);
}

TEST(PageAllocator, DropBeforeFreesPagesThatLieWhollyBefore) {
  PageAllocator allocator = allocator_of(8, 4);
  const SequenceId a = add(allocator, 14);
  const std::vector<std::pair<int64_t, int64_t>> table = {{3, 0}, {4, 4}, {2, 4}, {11, 8}};
  for (const auto& [position, kv_start] : table) {
    ASSERT_TRUE(allocator.drop_before(a, position).ok());
    EXPECT_EQ(*allocator.kv_start(a), kv_start) << position;
  }
  EXPECT_EQ(pages(allocator, a), (Pages{2, 3}));
  EXPECT_EQ(allocator.num_free_pages(), 6);
  EXPECT_EQ(*allocator.context_len(a), 14);
  expect_no_copy(allocator.append(a, 3));
  EXPECT_EQ(pages(allocator, a).size(), 3u);
}

TEST(PageAllocator, DropBeforeKeepsThePageThatTheNextTokenGoesTo) {
  PageAllocator allocator = allocator_of(8, 4);
  const SequenceId a = add(allocator, 6), b = add(allocator, 8);
  ASSERT_TRUE(allocator.drop_before(a, kMaxInt64).ok());
  EXPECT_EQ(*allocator.kv_start(a), 4);
  EXPECT_EQ(pages(allocator, a), Pages{1});
  ASSERT_TRUE(allocator.drop_before(b, 8).ok());
  EXPECT_EQ(*allocator.kv_start(b), 8);
  EXPECT_EQ(pages(allocator, b), Pages{});
  expect_no_copy(allocator.append(b, 1));
  EXPECT_EQ(pages(allocator, b).size(), 1u);
}

TEST(PageAllocator, DropBeforeTakesOneReferenceFromASharedPage) {
  PageAllocator allocator = allocator_of(8, 4);
  const SequenceId parent = add(allocator, 9), child = *allocator.fork(parent);
  ASSERT_TRUE(allocator.drop_before(child, 8).ok());
  EXPECT_EQ(allocator.reference_count(0), 1);
  EXPECT_EQ(allocator.num_free_pages(), 5);
  EXPECT_EQ(pages(allocator, parent), (Pages{0, 1, 2}));
  expect_copy(allocator.append(child, 1), {2, 3, 1});
}

TEST(PageAllocator, ExhaustionChangesNothing) {
  PageAllocator allocator = allocator_of(4, 4);
  const SequenceId parent = add(allocator, 6), child = *allocator.fork(parent);
  // Page 2 for the copy, page 3 for two tokens; the eighth token has none.
  const auto result = allocator.append(child, 11);
  EXPECT_EQ(result.status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(result.status().message(),
            "num_tokens: expected no more than fit in 2 free pages, got 11, which need 4");
  EXPECT_EQ(pages(allocator, child), (Pages{0, 1}));
  EXPECT_EQ(*allocator.context_len(child), 6);
  EXPECT_EQ(allocator.num_free_pages(), 2);
  EXPECT_EQ(allocator.reference_count(1), 2);
  expect_copy(allocator.append(child, 6), {1, 2, 2});
  EXPECT_EQ(allocator.num_free_pages(), 0);
}

TEST(PageAllocator, ALastFreePageIsEnoughForACopy) {
  PageAllocator allocator = allocator_of(2, 4);
  const SequenceId parent = add(allocator, 1), child = *allocator.fork(parent);
  expect_copy(allocator.append(child, 3), {0, 1, 1});
  expect_no_copy(allocator.append(parent, 3));
  EXPECT_EQ(allocator.append(parent, 1).status().code(), StatusCode::kResourceExhausted);
}

TEST(PageAllocator, ReleaseFreesWhatNobodyElseHolds) {
  PageAllocator allocator = allocator_of(8, 4);
  const SequenceId parent = add(allocator, 8), child = *allocator.fork(parent);
  expect_no_copy(allocator.append(child, 4));
  ASSERT_TRUE(allocator.release(parent).ok());
  EXPECT_EQ(allocator.num_free_pages(), 5);
  EXPECT_EQ(allocator.reference_count(0), 1);
  ASSERT_TRUE(allocator.release(child).ok());
  EXPECT_EQ(allocator.num_free_pages(), 8);
  EXPECT_EQ(allocator.num_sequences(), 0);
}

TEST(PageAllocator, DoesNotUseANameAgain) {
  PageAllocator allocator = allocator_of(1, 1);
  const SequenceId a = *allocator.add_sequence();
  ASSERT_TRUE(allocator.release(a).ok());
  EXPECT_NE(*allocator.add_sequence(), a);
  EXPECT_FALSE(allocator.release(a).ok());
}

TEST(PageAllocator, TakesNoMemoryForPagesThatWereNeverHandedOut) {
  PageAllocator allocator = allocator_of(kMaxInt32, 1);  // eagerly, 24 GiB
  EXPECT_EQ(allocator.num_free_pages(), kMaxInt32);
  EXPECT_EQ(pages(allocator, add(allocator, 2)), (Pages{0, 1}));
  EXPECT_EQ(allocator.num_free_pages(), kMaxInt32 - 2);
}

TEST(PageAllocator, StopsAtTheLastPositionOfInt32) {
  PageAllocator allocator = allocator_of(4, kMaxInt32 / 2);
  const SequenceId a = add(allocator, kMaxInt32 - 1);
  for (int64_t num_tokens : {int64_t{2}, kMaxInt64}) {
    const auto result = allocator.append(a, num_tokens);
    EXPECT_EQ(result.status().message().rfind("num_tokens: expected 0 to 1, got ", 0), 0u)
        << result.status().message();
  }
  expect_no_copy(allocator.append(a, 1));
  EXPECT_EQ(*allocator.context_len(a), kMaxInt32);
}

TEST(PageAllocator, KnowsNoPagesOutsideTheCache) {
  PageAllocator allocator = allocator_of(2, 1);
  add(allocator, 2);
  for (int64_t page : {int64_t{-1}, int64_t{2}, kMaxInt64}) {
    EXPECT_EQ(allocator.reference_count(page), 0);
  }
}

TEST(PageAllocator, NamesWhatIsWrong) {
  EXPECT_EQ(PageAllocator::create(-1, 1).status().message(),
            "total_num_pages: expected 0 to 2147483647, got -1");
  EXPECT_EQ(PageAllocator::create(kMaxInt32 + 1, 1).status().message(),
            "total_num_pages: expected 0 to 2147483647, got 2147483648");
  EXPECT_EQ(PageAllocator::create(1, 0).status().message(),
            "page_size: expected 1 to 2147483647, got 0");

  PageAllocator allocator = allocator_of(8, 4);
  const SequenceId a = add(allocator, 9);
  ASSERT_TRUE(allocator.drop_before(a, 4).ok());
  EXPECT_EQ(allocator.append(a, -1).status().message(),
            "num_tokens: expected 0 to 2147483638, got -1");
  EXPECT_EQ(allocator.truncate(a, 3).message(), "context_len: expected 4 to 9, got 3");
  EXPECT_EQ(allocator.truncate(a, 10).message(), "context_len: expected 4 to 9, got 10");
  EXPECT_EQ(allocator.drop_before(a, -1).message(), "position: expected at least 0, got -1");
  EXPECT_EQ(allocator.fork(77).status().message(),
            "parent: expected a sequence of this allocator, got 77");
  const std::string unknown = "sequence: expected a sequence of this allocator, got 77";
  EXPECT_EQ(allocator.append(77, 1).status().message(), unknown);
  EXPECT_EQ(allocator.truncate(77, 0).message(), unknown);
  EXPECT_EQ(allocator.drop_before(77, 0).message(), unknown);
  EXPECT_EQ(allocator.release(77).message(), unknown);
  EXPECT_EQ(allocator.context_len(77).status().message(), unknown);
  EXPECT_EQ(allocator.kv_start(77).status().message(), unknown);
  EXPECT_EQ(allocator.page_indices(77).status().message(), unknown);
}

}  // namespace
}  // namespace pagefill::testing
