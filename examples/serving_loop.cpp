// Two answers to one prompt, served together: the prompt is prefilled once, the second sequence forks
// off and shares its pages, then both decode in one ragged batch. What a model computes is made up.
#include <pagefill/attention.h>
#include <pagefill/kv_cache.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

using pagefill::MutableTensorView, pagefill::TensorView;

constexpr int64_t kNumQHeads = 8, kNumKvHeads = 2, kHeadDim = 64;
constexpr int64_t kPages = 12, kPageSize = 8, kPrompt = 20, kSteps = 6;

static void check(const pagefill::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

template <typename T>
static T take(pagefill::Result<T> result) {
  check(result.status());
  return std::move(result).value();
}

// [num_tokens, num_heads, head_dim] numbers that differ between calls.
static std::vector<float> project(int64_t num_tokens, int64_t num_heads) {
  static float phase = 0;
  std::vector<float> data(static_cast<size_t>(num_tokens * num_heads * kHeadDim));
  for (float& x : data) x = std::sin(phase += 0.7f);
  return data;
}

struct Engine {
  pagefill::PageAllocator allocator = take(pagefill::PageAllocator::create(kPages, kPageSize));
  std::vector<float> keys = std::vector<float>(kNumKvHeads * kPages * kPageSize * kHeadDim);
  std::vector<float> values = keys;
  MutableTensorView key_cache{keys.data(), {kNumKvHeads, kPages, kPageSize, kHeadDim}};
  MutableTensorView value_cache{values.data(), {kNumKvHeads, kPages, kPageSize, kHeadDim}};

  // Every sequence goes on by num_new tokens. Returns the log-sum-exp of each new row.
  std::vector<float> step(const std::vector<int64_t>& sequences, int64_t num_new) {
    const auto num_seqs = static_cast<int64_t>(sequences.size()), rows = num_seqs * num_new;
    std::vector<int32_t> query_starts = {0}, context_lens, table(num_seqs * kPages, -1);
    for (int64_t s = 0; s < num_seqs; ++s) {
      const int64_t sequence = sequences[s];
      check(copy_pages(take(allocator.append(sequence, num_new)), key_cache, value_cache));
      query_starts.push_back(static_cast<int32_t>((s + 1) * num_new));
      context_lens.push_back(static_cast<int32_t>(take(allocator.context_len(sequence))));
      const auto pages = take(allocator.page_indices(sequence));
      std::copy(pages.begin(), pages.end(), table.begin() + s * kPages);
    }
    const TensorView page_table(table.data(), {num_seqs, kPages});
    const std::vector<float> query = project(rows, kNumQHeads);
    const std::vector<float> new_keys = project(rows, kNumKvHeads);
    const std::vector<float> new_values = project(rows, kNumKvHeads);
    std::vector<float> output(query.size()), lse(rows * kNumQHeads);
    check(append_kv({new_keys.data(), {rows, kNumKvHeads, kHeadDim}},
                    {new_values.data(), {rows, kNumKvHeads, kHeadDim}}, key_cache, value_cache,
                    query_starts, context_lens, page_table));
    check(ragged_page_attention(
        {query.data(), {rows, kNumQHeads, kHeadDim}}, key_cache, value_cache, query_starts,
        context_lens, page_table, {},
        {{output.data(), {rows, kNumQHeads, kHeadDim}}, {lse.data(), {rows, kNumQHeads}}}));
    return lse;
  }
};

int main() {
  Engine engine;
  const int64_t first = take(engine.allocator.add_sequence());
  engine.step({first}, kPrompt);
  const int64_t second = take(engine.allocator.fork(first));
  std::printf("prompt of %ld tokens, forked: %ld of %ld pages in use\n", long{kPrompt},
              long{kPages - engine.allocator.num_free_pages()}, long{kPages});
  for (int64_t i = 0; i < kSteps; ++i) {
    const std::vector<float> lse = engine.step({first, second}, 1);
    std::printf("decode %ld: lse %.4f and %.4f, %ld pages in use\n", long{i}, lse[0],
                lse[kNumQHeads], long{kPages - engine.allocator.num_free_pages()});
  }
  check(engine.allocator.release(first));
  check(engine.allocator.release(second));
  std::printf("released: %ld pages in use\n", long{kPages - engine.allocator.num_free_pages()});
  return engine.allocator.num_free_pages() == kPages ? 0 : 1;
}
