// A prompt of 100 tokens whose keys and values lie in scattered pages of 16, attended to in chunks of
// 32 as a serving engine would do it, and once more as a whole: the bits are the same.
#include <pagefill/attention.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

constexpr int64_t kTokens = 100, kChunk = 32;
constexpr int64_t kNumQHeads = 8, kNumKvHeads = 2, kHeadDim = 64;
constexpr int64_t kPages = 20, kPageSize = 16;

static std::vector<float> random_numbers(int64_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& number : numbers) number = normal(generator);
  return numbers;
}

// Tokens [begin, end) of the prompt attend to everything up to themselves.
static bool attend(const std::vector<float>& query, const pagefill::TensorView& key_cache,
                   const pagefill::TensorView& value_cache,
                   const std::vector<int32_t>& page_indices, int64_t begin, int64_t end,
                   std::vector<float>& output, std::vector<float>& lse) {
  const int64_t row = kNumQHeads * kHeadDim, chunk = end - begin;
  const std::vector<int32_t> context_len = {static_cast<int32_t>(end)};
  const pagefill::Status status = pagefill::prefill_page_attention(
      {query.data() + begin * row, {chunk, kNumQHeads, kHeadDim}}, key_cache, value_cache,
      context_len, page_indices, {.attn_logits_soft_cap = 30.0f},
      {{output.data() + begin * row, {chunk, kNumQHeads, kHeadDim}},
       {lse.data() + begin * kNumQHeads, {chunk, kNumQHeads}}});
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok();
}

int main() {
  const std::vector<float> query = random_numbers(kTokens * kNumQHeads * kHeadDim, 1);
  const int64_t cache_size = kNumKvHeads * kPages * kPageSize * kHeadDim;
  const std::vector<float> keys = random_numbers(cache_size, 2);
  const std::vector<float> values = random_numbers(cache_size, 3);
  const pagefill::TensorView key_cache(keys.data(), {kNumKvHeads, kPages, kPageSize, kHeadDim});
  const pagefill::TensorView value_cache(values.data(), {kNumKvHeads, kPages, kPageSize, kHeadDim});
  const std::vector<int32_t> page_indices = {13, 2, 19, 7, 0, 11, 5};  // 7 * 16 >= 100

  std::vector<float> chunked(query.size()), whole(query.size());
  std::vector<float> chunked_lse(kTokens * kNumQHeads), whole_lse(kTokens * kNumQHeads);
  for (int64_t begin = 0; begin < kTokens; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, kTokens);
    if (!attend(query, key_cache, value_cache, page_indices, begin, end, chunked, chunked_lse)) {
      return 1;
    }
    const size_t last_row = static_cast<size_t>((end - 1) * kNumQHeads);
    std::printf("tokens %3ld to %3ld: lse of the last one's heads", static_cast<long>(begin),
                static_cast<long>(end - 1));
    for (size_t h = 0; h < 4; ++h) std::printf(" %.4f", chunked_lse[last_row + h]);
    std::printf(" ...\n");
  }
  if (!attend(query, key_cache, value_cache, page_indices, 0, kTokens, whole, whole_lse)) return 1;

  const bool same =
      std::memcmp(chunked.data(), whole.data(), whole.size() * sizeof(float)) == 0 &&
      std::memcmp(chunked_lse.data(), whole_lse.data(), whole_lse.size() * sizeof(float)) == 0;
  std::printf("in chunks of %ld and whole: %s\n", static_cast<long>(kChunk),
              same ? "the same bits" : "different bits");
  return same ? 0 : 1;
}
