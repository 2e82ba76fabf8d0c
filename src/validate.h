// Every rule of the operator's arguments, once.
#pragma once

#include <string_view>

#include "pagefill/attention.h"
#include "pagefill/status.h"
#include "problem.h"

namespace pagefill {

// The metadata of a ragged batch, as it came.
struct Batch {
  TensorView query_starts;  // not given: one sequence, which has all rows
  TensorView context_lens;
  TensorView page_table;
};

// What the messages call the metadata: the single call has names of its own for them.
struct BatchNames {
  const char* context_lens = "context_lens";
  const char* page_table = "page_table";
  const char* total_tokens = "total_tokens";
  const char* max_pages = "max_pages";
  bool has_query_starts = true;  // the single call has none
};
inline constexpr BatchNames kRaggedNames{};
inline constexpr BatchNames kSingleNames{"context_len", "page_indices", "chunk_size", "num_pages",
                                         false};

// The call as a Problem, or the first rule that it breaks.
Result<Problem> validate(const TensorView& query, const TensorView& key_cache,
                         const TensorView& value_cache, const Batch& batch,
                         const AttentionOptions& options, const AttentionOutput& output,
                         const BatchNames& names);

// query_starts int32 [num_seqs + 1], from 0, never decreasing, within total_tokens; context_lens int32
// [num_seqs], not below 0; page_table int32 [num_seqs, max_pages]; kv_start int32 [num_seqs], not below 0.
// Numbers that lie on a device are not looked at.
Status check_batch(const Batch& batch, const TensorView& kv_start, int64_t total_tokens,
                   const BatchNames& names);

// Key and value caches that agree with each other.
Status check_caches(const TensorView& key_cache, const TensorView& value_cache);

// Not given, or a scale of the elements of `cache`, which is checked and called `cache_name`: float32 [1],
// [num_kv_heads] or [num_kv_heads, total_num_pages, page_size] with any strides, and only for a quantised
// dtype.
Status check_scale(std::string_view name, const TensorView& scale, std::string_view cache_name,
                   const TensorView& cache);

// The same, of the last of these shapes: a scale a slot.
Status check_slot_scale(std::string_view name, const TensorView& scale, std::string_view cache_name,
                        const TensorView& cache);

// A dimension of one element has any stride, up to 2^63. Nothing steps along it, so that from here on it is 0:
// code may multiply a stride by the element size, or add it once too often, without a look at the extent.
template <typename View>
View without_idle_strides(View view) {
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[i] == 1) view.strides[i] = 0;
  }
  return view;
}

// A checked scale.
CacheScale cache_scale(const TensorView& scale);

// The table has entries for all of the context from kv_start on.
Status check_capacity(const TensorView& page_table, int64_t s, const SequenceGeometry& seq,
                      int64_t page_size, const BatchNames& names);

// The table entries that hold keys of `range` exist and name pages of the cache.
Status check_pages(const TensorView& page_table, int64_t s, const SequenceGeometry& seq,
                   KeyRange range, int64_t page_size, int64_t total_num_pages,
                   const BatchNames& names);

inline constexpr int64_t kHeadDimMultiple = 8;

}  // namespace pagefill
