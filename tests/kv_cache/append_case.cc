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

int64_t offset(const TensorView& cache, int64_t head, int64_t page, int64_t slot) {
  return head * cache.strides[0] + page * cache.strides[1] + slot * cache.strides[2];
}

// The scale that a slot should have been quantised with: one that was given, or the one to be chosen.
float expected_scale(const TensorView& given, const MutableTensorView& chosen, int64_t head,
                     int64_t page, int64_t slot, double largest_magnitude, DType dtype) {
  if (chosen.given()) {
    if (!std::isfinite(largest_magnitude)) return std::numeric_limits<float>::quiet_NaN();
    if (largest_magnitude == 0) return 1;
    return std::max(static_cast<float>(largest_magnitude) / static_cast<float>(largest_of(dtype)),
                    0x1p-126f);
  }
  if (!given.given()) return 1;
  const auto* data = static_cast<const float*>(given.data);
  return data[given.rank == 3 ? offset(given, head, page, slot)
                              : (given.shape[0] > 1 ? head * given.strides[0] : 0)];
}

// Compares the scale that was chosen, and paints it over.
void take_out_scale(const MutableTensorView& chosen, int64_t head, int64_t page, int64_t slot,
                    float expected) {
  float* got = static_cast<float*>(chosen.data) + offset(chosen, head, page, slot);
  if (std::isnan(expected)) {
    EXPECT_TRUE(std::isnan(*got)) << "scale of head " << head;
  } else {
    EXPECT_EQ(*got, expected) << "scale of head " << head;
  }
  std::memset(got, static_cast<int>(kCanary), sizeof(float));
}

// Compares the token with its slot, and paints the slot over with canaries again.
void take_out(const TensorView& tokens, int64_t token, const MutableTensorView& cache,
              const TensorView& given, const MutableTensorView& chosen, int64_t page,
              int64_t slot) {
  const auto* from = static_cast<const std::byte*>(tokens.data);
  auto* to = static_cast<std::byte*>(cache.data);
  for (int64_t head = 0; head < tokens.shape[1]; ++head) {
    const int64_t row = offset(cache, head, page, slot);
    const int64_t source = token * tokens.strides[0] + head * tokens.strides[1];
    double largest = 0;  // NaN and infinities stay
    for (int64_t d = 0; d < tokens.shape[2]; ++d) {
      const double magnitude = std::abs(load(from, tokens.dtype, source + d));
      if (!(magnitude <= largest)) largest = magnitude;
    }
    const float scale = expected_scale(given, chosen, head, page, slot, largest, cache.dtype);
    if (chosen.given()) take_out_scale(chosen, head, page, slot, scale);
    for (int64_t d = 0; d < tokens.shape[2]; ++d) {
      const double x = load(from, tokens.dtype, source + d);
      ASSERT_EQ(load(to, cache.dtype, row + d), rounded(x / scale, cache.dtype))
          << "token " << token << ", head " << head << ", element " << d << ": " << x << " / "
          << scale;
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

double largest_of(DType dtype) {
  return dtype == DType::kInt8 ? 127 : dtype == DType::kFloat8E4M3 ? 448 : 57344;
}

double rounded(double value, DType dtype) {
  if (dtype == DType::kFloat32 || !std::isfinite(value) || value == 0) return value;
  if (dtype == DType::kInt8) return std::nearbyint(std::clamp(value, -127.0, 127.0));
  struct Format {
    int precision;  // significant bits
    int min_exponent, max_exponent;
  };
  const Format format = dtype == DType::kFloat16      ? Format{11, -14, 15}
                        : dtype == DType::kFloat8E4M3 ? Format{4, -6, 8}
                        : dtype == DType::kFloat8E5M2 ? Format{3, -14, 15}
                                                      : Format{8, -126, 127};
  const int exponent = std::max(std::ilogb(value), format.min_exponent);
  const double unit = std::ldexp(1.0, exponent - format.precision + 1);  // of the last place
  const double result = std::nearbyint(value / unit) * unit;
  if (is_quantised(dtype)) {
    return std::copysign(std::min(std::abs(result), largest_of(dtype)), value);
  }
  if (std::abs(result) < std::ldexp(1.0, format.max_exponent + 1)) return result;
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
  return fmt::format(
      "{} -> {}, page_size {}, {} heads of {} and {}, cache order {}, token gap {}, "
      "scales {}{}",
      dtype_name(g.tokens_dtype), dtype_name(g.cache_dtype), g.page_size, g.num_kv_heads,
      g.head_dim, g.v_head_dim, static_cast<int>(g.cache_order), g.token_gap,
      static_cast<int>(g.scale), g.choose_scales ? ", chosen" : "");
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
  lay_out_scales(num_pages);
}

void AppendCase::lay_out_scales(int64_t num_pages) {
  const int64_t heads = geometry.num_kv_heads, size = geometry.page_size;
  if (geometry.choose_scales) {  // token-major
    const auto chosen = [&](GuardedBuffer& memory) {
      memory = canaries(num_pages * size * heads, DType::kFloat32);
      return MutableTensorView(memory.data(), DType::kFloat32, {heads, num_pages, size},
                               {1, size * heads, heads});
    };
    options.chosen_key_scale = chosen(chosen_key_memory);
    options.chosen_value_scale = chosen(chosen_value_memory);
  }
  if (geometry.scale == ScalePer::kNone) return;
  for (int i : {0, 1}) {
    for (int64_t n = 0; n < heads * num_pages * size; ++n) {
      scales[i].push_back(0.01f + 0.003f * static_cast<float>((n + i) % 17));
    }
    (i == 0 ? options.key_scale : options.value_scale) =
        geometry.scale == ScalePer::kTensor ? TensorView(scales[i].data(), {1})
        : geometry.scale == ScalePer::kHead
            ? TensorView(scales[i].data(), {heads})
            : TensorView(scales[i].data(), {heads, num_pages, size});
  }
}

Status AppendCase::call(const Context& context) const {
  AppendOptions all = options;
  all.kv_start = kv_start;
  return append_kv(keys, values, key_cache, value_cache, query_starts, context_lens, page_table,
                   all, context);
}

void AppendCase::expect_written() const {
  for (size_t s = 0; s < geometry.sequences.size(); ++s) {
    const NewTokens& seq = geometry.sequences[s];
    for (int64_t i = 0; i < seq.num_tokens; ++i) {
      const int64_t distance = seq.context_len - seq.num_tokens + i - seq.kv_start;
      const int64_t page = pages[s * static_cast<size_t>(page_table.shape[1]) +
                                 static_cast<size_t>(distance / geometry.page_size)];
      const int64_t slot = distance % geometry.page_size;
      take_out(keys, query_starts[s] + i, key_cache, options.key_scale, options.chosen_key_scale,
               page, slot);
      take_out(values, query_starts[s] + i, value_cache, options.value_scale,
               options.chosen_value_scale, page, slot);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
  expect_untouched();
}

void AppendCase::expect_untouched() const {
  expect_canaries(key_memory);
  expect_canaries(value_memory);
  expect_canaries(chosen_key_memory);
  expect_canaries(chosen_value_memory);
}

void expect_appends(const AppendGeometry& geometry) {
  SCOPED_TRACE(describe(geometry));
  const AppendCase append(geometry);
  const Status status = append.call();
  ASSERT_TRUE(status.ok()) << status.message();
  append.expect_written();
}

}  // namespace pagefill::testing
