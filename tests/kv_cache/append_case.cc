#include "append_case.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "support/elements.h"

namespace pagefill::testing {
namespace {

constexpr int64_t kSparePages = 3;

int64_t pages_of(const NewTokens& seq, int64_t page_size) {
  return (seq.context_len - seq.kv_start + page_size - 1) / page_size;
}

GuardedBuffer random_tokens(int64_t num_elements, DType dtype, std::mt19937& random) {
  GuardedBuffer memory(num_elements * dtype_size(dtype), Guard::kBehind);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < num_elements; ++i) store(memory.data(), dtype, i, normal(random));
  memory.make_read_only();
  return memory;
}

GuardedBuffer canaries(int64_t num_elements, DType dtype) {
  GuardedBuffer memory(num_elements * dtype_size(dtype), Guard::kBehind);
  std::memset(memory.data(), static_cast<int>(kCanary), static_cast<size_t>(memory.size()));
  return memory;
}

MutableTensorView cache_view(std::byte* data, DType dtype, std::initializer_list<int64_t> shape,
                             const std::vector<int64_t>& strides) {
  MutableTensorView view(data, dtype, shape);
  std::copy(strides.begin(), strides.end(), view.strides.begin());
  return view;
}

int64_t offset(const MutableTensorView& cache, int64_t head, int64_t page, int64_t slot) {
  return head * cache.strides[0] + page * cache.strides[1] + slot * cache.strides[2];
}

// Compares the token with its slot, and paints the slot over with canaries again.
void take_out(const TensorView& tokens, int64_t token, const MutableTensorView& cache, int64_t page,
              int64_t slot) {
  const auto* from = static_cast<const std::byte*>(tokens.data);
  auto* to = static_cast<std::byte*>(cache.data);
  for (int64_t head = 0; head < tokens.shape[1]; ++head) {
    const int64_t row = offset(cache, head, page, slot);
    for (int64_t d = 0; d < tokens.shape[2]; ++d) {
      const int64_t source = token * tokens.strides[0] + head * tokens.strides[1] + d;
      const double expected = rounded(load(from, tokens.dtype, source), cache.dtype);
      ASSERT_EQ(load(to, cache.dtype, row + d), expected)
          << "token " << token << ", head " << head << ", element " << d;
    }
    std::memset(to + row * dtype_size(cache.dtype), static_cast<int>(kCanary),
                static_cast<size_t>(cache.shape[3] * dtype_size(cache.dtype)));
  }
}

void expect_canaries(const GuardedBuffer& memory) {
  const bool untouched = std::all_of(memory.data(), memory.data() + memory.size(),
                                     [](std::byte b) { return b == kCanary; });
  EXPECT_TRUE(untouched) << "memory of nobody was written";
}

}  // namespace

double rounded(double value, DType dtype) {
  if (dtype == DType::kFloat32 || !std::isfinite(value) || value == 0) return value;
  const bool is_half = dtype == DType::kFloat16;
  const int precision = is_half ? 11 : 8;  // significant bits
  const int min_exponent = is_half ? -14 : -126, max_exponent = is_half ? 15 : 127;
  const int exponent = std::max(std::ilogb(value), min_exponent);
  const double unit = std::ldexp(1.0, exponent - precision + 1);  // of the last place
  const double result = std::nearbyint(value / unit) * unit;
  if (std::abs(result) < std::ldexp(1.0, max_exponent + 1)) return result;
  return std::copysign(std::numeric_limits<double>::infinity(), value);
}

CacheStrides cache_strides(CacheOrder order, int64_t heads, int64_t num_pages, int64_t page_size,
                           int64_t head_dim, int64_t v_head_dim) {
  const int64_t both = head_dim + v_head_dim, rows = num_pages * page_size * heads;
  switch (order) {
    case CacheOrder::kHeadMajor:
      return {{num_pages * page_size * head_dim, page_size * head_dim, head_dim, 1},
              {num_pages * page_size * v_head_dim, page_size * v_head_dim, v_head_dim, 1},
              rows * head_dim,
              rows * v_head_dim};
    case CacheOrder::kTokenMajor:
      return {{head_dim, page_size * heads * head_dim, heads * head_dim, 1},
              {v_head_dim, page_size * heads * v_head_dim, heads * v_head_dim, 1},
              rows * head_dim,
              rows * v_head_dim};
    case CacheOrder::kInterleavedSlots: {
      const std::vector<int64_t> strides = {both, page_size * heads * both, heads * both, 1};
      return {strides, strides, rows * both, 0, head_dim};
    }
    default: {  // kInterleavedPages: each page's keys, then its values
      const int64_t page = page_size * heads * both;
      return {{head_dim, page, heads * head_dim, 1},
              {v_head_dim, page, heads * v_head_dim, 1},
              rows * both,
              0,
              page_size * heads * head_dim};
    }
  }
}

std::string describe(const AppendGeometry& g) {
  return fmt::format("{} -> {}, page_size {}, {} heads of {} and {}, cache order {}, token gap {}",
                     dtype_name(g.tokens_dtype), dtype_name(g.cache_dtype), g.page_size,
                     g.num_kv_heads, g.head_dim, g.v_head_dim, static_cast<int>(g.cache_order),
                     g.token_gap);
}

AppendCase::AppendCase(const AppendGeometry& g) : geometry(g) {
  std::mt19937 random(g.seed);
  const auto num_seqs = static_cast<int64_t>(g.sequences.size());
  int64_t max_pages = 0, pages_in_use = 0, total_tokens = 0;
  query_starts = {0};
  for (const NewTokens& seq : g.sequences) {
    total_tokens += seq.num_tokens;
    query_starts.push_back(static_cast<int32_t>(total_tokens));
    context_lens.push_back(static_cast<int32_t>(seq.context_len));
    kv_start.push_back(static_cast<int32_t>(seq.kv_start));
    max_pages = std::max(max_pages, pages_of(seq, g.page_size));
    pages_in_use += pages_of(seq, g.page_size);
  }
  total_tokens += g.padding_tokens;

  const int64_t num_pages = pages_in_use + kSparePages;
  std::vector<int32_t> free(static_cast<size_t>(num_pages));
  std::iota(free.begin(), free.end(), 0);
  std::shuffle(free.begin(), free.end(), random);
  pages.assign(static_cast<size_t>(num_seqs * max_pages), -1);
  for (int64_t s = 0; s < num_seqs; ++s) {
    const NewTokens& seq = g.sequences[static_cast<size_t>(s)];
    if (seq.num_tokens == 0) continue;
    const int64_t first = (seq.context_len - seq.num_tokens - seq.kv_start) / g.page_size;
    for (int64_t page = first; page < pages_of(seq, g.page_size); ++page) {
      pages[static_cast<size_t>(s * max_pages + page)] = free.back();
      free.pop_back();
    }
  }
  page_table = TensorView(pages.data(), {num_seqs, max_pages});

  const auto tokens = [&](GuardedBuffer& memory, int64_t dim) {
    const int64_t row = g.num_kv_heads * dim + g.token_gap;
    memory = random_tokens(total_tokens * row - g.token_gap, g.tokens_dtype, random);
    return TensorView(memory.data(), g.tokens_dtype, {total_tokens, g.num_kv_heads, dim},
                      {row, dim, 1});
  };
  keys = tokens(keys_memory, g.head_dim);
  values = tokens(values_memory, g.v_head_dim);

  const CacheStrides strides = cache_strides(g.cache_order, g.num_kv_heads, num_pages, g.page_size,
                                             g.head_dim, g.v_head_dim);
  key_memory = canaries(strides.key_elements, g.cache_dtype);
  value_memory = canaries(strides.value_elements, g.cache_dtype);
  std::byte* value_data =
      strides.value_elements > 0
          ? value_memory.data()
          : key_memory.data() + strides.value_offset * dtype_size(g.cache_dtype);
  key_cache = cache_view(key_memory.data(), g.cache_dtype,
                         {g.num_kv_heads, num_pages, g.page_size, g.head_dim}, strides.key);
  value_cache = cache_view(value_data, g.cache_dtype,
                           {g.num_kv_heads, num_pages, g.page_size, g.v_head_dim}, strides.value);
}

Status AppendCase::call(const Context& context) const {
  return append_kv(keys, values, key_cache, value_cache, query_starts, context_lens, page_table,
                   kv_start, context);
}

void AppendCase::expect_written() const {
  for (size_t s = 0; s < geometry.sequences.size(); ++s) {
    const NewTokens& seq = geometry.sequences[s];
    for (int64_t i = 0; i < seq.num_tokens; ++i) {
      const int64_t distance = seq.context_len - seq.num_tokens + i - seq.kv_start;
      const int64_t page = pages[s * static_cast<size_t>(page_table.shape[1]) +
                                 static_cast<size_t>(distance / geometry.page_size)];
      const int64_t slot = distance % geometry.page_size;
      take_out(keys, query_starts[s] + i, key_cache, page, slot);
      take_out(values, query_starts[s] + i, value_cache, page, slot);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
  expect_untouched();
}

void AppendCase::expect_untouched() const {
  expect_canaries(key_memory);
  expect_canaries(value_memory);
}

}  // namespace pagefill::testing
