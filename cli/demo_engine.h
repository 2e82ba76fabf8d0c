// A serving engine in small: several sequences in one paged cache, prompts in chunks and decode tokens in
// one ragged batch a step. Only the attention of one layer; queries, keys and values are random. Where the backend
// works on a CUDA device, the cache stays there; the host has the tokens, the page tables and the results.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "device_memory.h"
#include "pagefill/attention.h"
#include "pagefill/kv_cache.h"

namespace pagefill::cli {

inline constexpr int64_t kNumQHeads = 8;
inline constexpr int64_t kNumKvHeads = 2;
inline constexpr int64_t kHeadDim = 64;
inline constexpr int64_t kPageSize = 16;
inline constexpr int64_t kMaxChunk = 48;  // tokens of one prompt in one step

// What a model's projections would give for each token, [tokens, heads, head_dim].
struct Tokens {
  int64_t count = 0;
  std::vector<float> query, keys, values;
};
Tokens random_tokens(int64_t count, uint64_t seed);
// Tokens `count` on from `begin` are put at the end.
void append_tokens(Tokens& to, const Tokens& from, int64_t begin, int64_t count);

// Attention of tokens, [tokens, heads, head_dim] and [tokens, heads].
struct Attended {
  std::vector<float> output, lse;
};

struct Sequence {
  std::string name;
  PageAllocator::SequenceId id = 0;
  Tokens tokens{};  // prompt, then what decode will add
  int64_t prompt_len = 0;
  int64_t shared_len = 0;  // tokens that were in the cache already
  int64_t context_len = 0;
  int64_t num_chunks = 0;
  int64_t num_decoded = 0;
  Attended attended{};  // of all context_len tokens

  bool finished() const { return context_len == tokens.count; }
};

class Engine {
 public:
  static Result<Engine> create(int64_t total_num_pages, const Context& context);

  // A sequence with a prompt, and with tokens that decode will add one by one.
  Result<Sequence> add(std::string name, const Tokens& prompt, int64_t num_decode, uint64_t seed);
  // The same, behind the parent's context, whose pages it shares.
  Result<Sequence> fork(const Sequence& parent, std::string name, const Tokens& prompt,
                        int64_t num_decode, uint64_t seed);

  // Every unfinished sequence moves on: by a chunk of its prompt, or by one token.
  Status step(std::vector<Sequence>& sequences);

  const PageAllocator& allocator() const { return allocator_; }
  int64_t num_copied_pages() const { return num_copied_pages_; }

 private:
  struct Batch;

  Engine(PageAllocator allocator, const Context& context);
  Result<Batch> gather(std::vector<Sequence>& sequences);
  MutableTensorView new_cache();

  PageAllocator allocator_;
  Context context_;
  bool on_device_;
  std::vector<std::vector<float>> memory_;   // of the caches: here,
  std::vector<DeviceMemory> device_memory_;  // or there
  Status status_;                            // of making them
  MutableTensorView key_cache_, value_cache_;
  int64_t num_copied_pages_ = 0;
};

// The sequence's tokens in one chunk over a cache of one page that is as long as they are: the bits that
// the engine's must have.
Result<Attended> whole_prefill(const Tokens& tokens, const Context& context);

}  // namespace pagefill::cli
