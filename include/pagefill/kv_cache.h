// The paged KV cache: who owns which page, and how new tokens get into their slots.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "pagefill/executor.h"
#include "pagefill/export.h"
#include "pagefill/status.h"
#include "pagefill/tensor.h"

namespace pagefill {

struct AppendOptions {
  // int32 [num_seqs]: the absolute position of the page table's first slot; >= 0. Default: 0.
  TensorView kv_start{};
  // Of a quantised cache: what to quantise with, in the shapes that attention takes. Default: 1.
  TensorView key_scale{};
  TensorView value_scale{};
  // float32 [num_kv_heads, total_num_pages, page_size], strides free; written. append_kv chooses each new
  // slot's scale: max|x| / the largest number of the dtype (127, 448, 57344), at least 2^-126; 1 for a row
  // of zeros; NaN for a row with a NaN or an infinity, so that it reads as NaN. Not together with
  // key_scale, value_scale.
  MutableTensorView chosen_key_scale{};
  MutableTensorView chosen_value_scale{};
};

// Writes the keys and values of new tokens into their slots, converting to the cache's dtype (round to
// nearest even). A quantised cache gets x / scale, saturated at the dtype's largest number; int8 has no NaN,
// so that a NaN becomes 0 there, and does not use -128. The metadata are those of the attention call that follows: context_lens counts the new
// tokens, so that token i of sequence s, of its n = query_starts[s+1] - query_starts[s], goes to position
// context_lens[s] - n + i.
//
//   keys          [total_tokens, num_kv_heads, head_dim], float32, bfloat16 or float16
//   values        [total_tokens, num_kv_heads, v_head_dim], keys' dtype
//   key_cache     [num_kv_heads, total_num_pages, page_size, head_dim], float32, bfloat16, float16, int8,
//                 float8_e4m3fn or float8_e5m2
//   value_cache   [num_kv_heads, total_num_pages, page_size, v_head_dim], key_cache's dtype
//   query_starts  int32 [num_seqs + 1], context_lens int32 [num_seqs], page_table int32 [num_seqs, max_pages]
//
// A token whose position is below 0 or below kv_start, or whose page is not in the cache, is an error;
// nothing is written then. Where two tokens of the batch name the same slot, which of them stays is not
// defined.
PAGEFILL_EXPORT Status append_kv(const TensorView& keys, const TensorView& values,
                                 const MutableTensorView& key_cache,
                                 const MutableTensorView& value_cache,
                                 const TensorView& query_starts, const TensorView& context_lens,
                                 const TensorView& page_table, const AppendOptions& options = {},
                                 const Context& context = {});

// One page whose first `num_slots` slots are to be copied before anything is written to `destination`.
struct PageCopy {
  int32_t source = 0;
  int32_t destination = 0;
  int32_t num_slots = 0;
};

struct CopyOptions {
  // float32 [num_kv_heads, total_num_pages, page_size]: scales a slot of a quantised cache, which move with
  // the elements. Scales per tensor or per KV head have nothing to move.
  MutableTensorView key_scale{};
  MutableTensorView value_scale{};
  // int32 [num_copies, 3] where the caches lie, strides free, in place of the list: source, destination,
  // num_slots. On a CUDA device they are read there, so that a captured graph replays other copies; one that is
  // bad is not done, and reported (CudaStatusCode::kCopies).
  TensorView copies{};
};

// Carries out copies of pages in a cache, all KV heads, in their order. The caches are as in append_kv.
PAGEFILL_EXPORT Status copy_pages(std::span<const PageCopy> copies,
                                  const MutableTensorView& key_cache,
                                  const MutableTensorView& value_cache,
                                  const CopyOptions& options = {}, const Context& context = {});

// Hands out the pages of one cache to sequences. Pages are reference-counted: a fork shares its
// parent's pages, and a shared last page is copied only when one of its owners appends to it. Knows page
// numbers only, never the memory behind them. Not thread-safe; one allocator serves one engine loop.
//
// A sequence is named by a handle that is not used again before 2^63 others. Every call that fails leaves
// everything as it was.
class PAGEFILL_EXPORT PageAllocator {
 public:
  using SequenceId = int64_t;

  // total_num_pages >= 0, page_size >= 1.
  static Result<PageAllocator> create(int64_t total_num_pages, int64_t page_size);

  PageAllocator(PageAllocator&&) noexcept;
  PageAllocator& operator=(PageAllocator&&) noexcept;
  ~PageAllocator();

  int64_t total_num_pages() const;
  int64_t page_size() const;
  int64_t num_free_pages() const;
  int64_t num_sequences() const;

  // How many sequences hold the page; 0 when it is free. A page outside the cache is held by none.
  int64_t reference_count(int64_t page) const;

  // An empty sequence.
  Result<SequenceId> add_sequence();

  // A sequence with the parent's tokens so far, sharing all of its pages.
  Result<SequenceId> fork(SequenceId parent);

  // Makes room for num_tokens (>= 0) more tokens. Returns the copies that have to be carried out
  // (copy_pages) before the new tokens are written: at most one, of a shared last page.
  // kResourceExhausted, with nothing changed, when there are too few free pages.
  Result<std::vector<PageCopy>> append(SequenceId sequence, int64_t num_tokens);

  // Forgets the tokens from position context_len on (rejected speculative tokens); frees pages that hold
  // none of the rest. 0 <= kv_start <= context_len <= the present one.
  Status truncate(SequenceId sequence, int64_t context_len);

  // Frees the pages that lie wholly before `position` (a sliding window has passed them); kv_start moves
  // up to the first page that stays. position >= 0.
  Status drop_before(SequenceId sequence, int64_t position);

  // The sequence is gone; pages that nobody else holds are free.
  Status release(SequenceId sequence);

  // The three metadata of a sequence for the attention call. page_indices is good until the next call
  // that changes this sequence.
  Result<int64_t> context_len(SequenceId sequence) const;
  Result<int64_t> kv_start(SequenceId sequence) const;
  Result<std::span<const int32_t>> page_indices(SequenceId sequence) const;

 private:
  struct State;
  explicit PageAllocator(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace pagefill
