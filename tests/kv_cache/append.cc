// append_kv: every new token is found where attention will look for it.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "append_case.h"
#include "pagefill/attention.h"
#include "support/elements.h"

namespace pagefill::testing {
namespace {

TEST(AppendKv, ConvertsEveryDtypeToEveryDtype) {
  for (DType from : kFloatDTypes) {
    for (DType to : kFloatDTypes) expect_appends({.tokens_dtype = from, .cache_dtype = to});
  }
}

TEST(AppendKv, TakesAnyPageSizeInAnyOrderOfTheCache) {
  for (int64_t page_size : {1, 3, 16, 100}) {
    for (CacheOrder order : kCacheOrders) {
      for (DType to : {DType::kFloat32, DType::kBFloat16}) {
        expect_appends({.page_size = page_size, .cache_dtype = to, .cache_order = order});
        expect_appends(
            {.v_head_dim = 16, .page_size = page_size, .cache_dtype = to, .cache_order = order});
      }
    }
  }
}

TEST(AppendKv, TakesTokensWithGapsBetweenThem) {
  expect_appends({.token_gap = 40});
  expect_appends({.num_kv_heads = 1, .token_gap = 8});
}

TEST(AppendKv, TakesNoTokensAtAll) {
  expect_appends({.sequences = {}});
  expect_appends({.sequences = {{0, 0}, {0, 9}}, .padding_tokens = 0});
}

TEST(AppendKv, LooksAtNoStrideOfADimensionOfOneElement) {
  AppendCase append(
      {.sequences = {{1, 1}}, .num_kv_heads = 1, .page_size = 1, .padding_tokens = 0});
  for (auto* view : {&append.key_cache, &append.value_cache}) {
    for (int i = 0; i < 3; ++i) {
      if (view->shape[i] == 1) view->strides[i] = std::numeric_limits<int64_t>::max();
    }
  }
  for (auto* view : {&append.keys, &append.values}) {
    view->strides[0] = view->strides[1] = std::numeric_limits<int64_t>::max();
  }
  ASSERT_TRUE(append.call().ok());
  append.expect_written();
}

TEST(AppendKv, CountsFromPositionZeroWithoutKvStart) {
  AppendCase append({.sequences = {{4, 9}, {2, 2}}});
  ASSERT_TRUE(append_kv(append.keys, append.values, append.key_cache, append.value_cache,
                        append.query_starts, append.context_lens, append.page_table)
                  .ok());
  append.expect_written();
}

TEST(AppendKv, RoundsToNearestEven) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  std::vector<float> numbers = {
      0.0f,         -0.0f,        kInf,     -kInf,         65504.0f,      65519.99f,
      65520.0f,     -65520.0f,    3.38e38f, 3.3953138e38f, 3.3961776e38f, 3.4028235e38f,
      1e-40f,       1.4e-45f,     0x1p-24f, 0x1p-25f,      0x1.8p-25f,    0x1.8p-24f,
      0x1.ffcp-15f, 0x1.ffep-15f, 0x1p-14f, 1.0f};
  for (float tie :
       {0x1.002p0f, 0x1.006p0f, 0x1.01p0f, 0x1.03p0f}) {  // halfway in float16, bfloat16
    for (float x : {tie, std::nextafter(tie, 0.0f), std::nextafter(tie, 2.0f), -tie}) {
      numbers.push_back(x);
    }
  }
  while (numbers.size() % 8 != 0) numbers.push_back(1.0f);
  const auto dim = static_cast<int64_t>(numbers.size());
  const TensorView tokens(numbers.data(), {1, 1, dim});
  const std::vector<int32_t> starts = {0, 1}, lens = {1}, pages = {0};
  for (DType to : kFloatDTypes) {
    std::vector<std::byte> keys(numbers.size() * 4), values(numbers.size() * 4);
    ASSERT_TRUE(append_kv(tokens, tokens, {keys.data(), to, {1, 1, 1, dim}},
                          {values.data(), to, {1, 1, 1, dim}}, starts, lens, {pages.data(), {1, 1}})
                    .ok());
    for (int64_t i = 0; i < dim; ++i) {
      const double got = load(keys.data(), to, i), expected = rounded(numbers[i], to);
      EXPECT_EQ(got, expected) << dtype_name(to) << " of " << numbers[i];
      EXPECT_EQ(std::signbit(got), std::signbit(expected))
          << dtype_name(to) << " of " << numbers[i];
    }
  }
}

TEST(AppendKv, KeepsNaNAndItsBitsWhereTheDtypesAgree) {
  std::vector<float> tokens(8,
                            std::bit_cast<float>(0x7fa12345u));  // a signalling NaN with a payload
  const std::vector<int32_t> starts = {0, 1}, lens = {1}, pages = {0};
  for (DType to : kFloatDTypes) {
    std::vector<float> keys(8), values(8);
    ASSERT_TRUE(append_kv({tokens.data(), {1, 1, 8}}, {tokens.data(), {1, 1, 8}},
                          {keys.data(), to, {1, 1, 1, 8}}, {values.data(), to, {1, 1, 1, 8}},
                          starts, lens, {pages.data(), {1, 1}})
                    .ok());
    for (int i = 0; i < 8; ++i) {
      EXPECT_TRUE(std::isnan(load(reinterpret_cast<std::byte*>(values.data()), to, i)));
    }
    if (to == DType::kFloat32) {
      EXPECT_EQ(std::bit_cast<uint32_t>(keys[7]), 0x7fa12345u);
    }
  }
}

TEST(AppendKv, WritesWhereAttentionReads) {
  const AppendCase append({.sequences = {{7, 7}}, .page_size = 3});
  ASSERT_TRUE(append.call().ok());
  // The first token sees itself only, so its output is its value.
  std::vector<float> query(7 * 2 * 16, 1.0f), output(7 * 2 * 24);
  const Status status = prefill_page_attention(
      {query.data(), {7, 2, 16}}, append.key_cache, append.value_cache, append.context_lens,
      append.pages, {}, MutableTensorView(output.data(), {7, 2, 24}), {.backend = "reference"});
  ASSERT_TRUE(status.ok()) << status.message();
  const auto* values = static_cast<const float*>(append.values.data);
  for (int i = 0; i < 2 * 24; ++i) EXPECT_EQ(output[i], values[i]);
}

TEST(AppendKv, AddressesSlotsBeyond32Bits) {
  constexpr int64_t kPages = 5, kPageStride = int64_t{1} << 30;  // the last page begins at 2^32
  const SparseMemory keys_memory(((kPages - 1) * kPageStride + 16 * 8) * 4);
  const SparseMemory values_memory(((kPages - 1) * kPageStride + 16 * 8) * 4);
  std::vector<float> tokens = {1, 2, 3, 4, 5, 6, 7, 8};
  const std::vector<int32_t> starts = {0, 1}, lens = {16}, pages = {kPages - 1};
  const auto cache = [&](const SparseMemory& memory) {
    return MutableTensorView(memory.data(), DType::kFloat32, {1, kPages, 16, 8},
                             {0, kPageStride, 8, 1});
  };
  ASSERT_TRUE(append_kv({tokens.data(), {1, 1, 8}}, {tokens.data(), {1, 1, 8}}, cache(keys_memory),
                        cache(values_memory), starts, lens, {pages.data(), {1, 1}})
                  .ok());
  for (const SparseMemory* memory : {&keys_memory, &values_memory}) {
    const auto* data = reinterpret_cast<const float*>(memory->data());
    for (int d = 0; d < 8; ++d) EXPECT_EQ(data[(kPages - 1) * kPageStride + 15 * 8 + d], tokens[d]);
  }
}

}  // namespace
}  // namespace pagefill::testing
