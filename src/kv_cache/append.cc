#include <fmt/format.h>

#include <array>
#include <cstring>

#include "backend.h"
#include "checks.h"
#include "kv_cache/cache_memory.h"
#include "pagefill/kv_cache.h"
#include "validate.h"

namespace pagefill {
namespace {

using CopyRow = void (*)(const void* source, void* destination, int64_t num_elements);

template <typename From, typename To>
void copy_row(const void* source, void* destination, int64_t num_elements) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(destination, source, static_cast<size_t>(num_elements) * sizeof(To));
  } else {
    const From* from = static_cast<const From*>(source);
    To* to = static_cast<To*>(destination);
    for (int64_t d = 0; d < num_elements; ++d) to[d] = To(static_cast<float>(from[d]));
  }
}

// Indexed by DType.
template <typename From>
constexpr std::array<CopyRow, 3> kCopyRowTo = {copy_row<From, float>, copy_row<From, bfloat16>,
                                               copy_row<From, float16>};
constexpr std::array<std::array<CopyRow, 3>, 3> kCopyRow = {kCopyRowTo<float>, kCopyRowTo<bfloat16>,
                                                            kCopyRowTo<float16>};
static_assert(static_cast<int>(DType::kFloat32) == 0 && static_cast<int>(DType::kBFloat16) == 1 &&
              static_cast<int>(DType::kFloat16) == 2);

// New keys and their cache, or new values and theirs.
struct Transfer {
  TensorView tokens;        // [total_tokens, num_kv_heads, head_dim]
  MutableTensorView cache;  // [num_kv_heads, total_num_pages, page_size, head_dim]

  // `batch` knows where its tokens go: the slots in which attention will look for them.
  void write(const Problem& batch, int64_t head_begin, int64_t head_end) const {
    const CopyRow copy =
        kCopyRow[static_cast<size_t>(tokens.dtype)][static_cast<size_t>(cache.dtype)];
    const auto* source = static_cast<const std::byte*>(tokens.data);
    auto* destination = static_cast<std::byte*>(cache.data);
    for (int64_t s = 0; s < batch.num_seqs; ++s) {
      const SequenceGeometry seq = batch.sequence(s);
      for (int64_t i = 0; i < seq.num_rows; ++i) {
        const int64_t token = (seq.query_start + i) * tokens.strides[0];
        const int64_t slot = batch.slot_offset(cache, s, seq, 0, seq.position(i));
        for (int64_t head = head_begin; head < head_end; ++head) {
          copy(source + (token + head * tokens.strides[1]) * dtype_size(tokens.dtype),
               destination + (slot + head * cache.strides[0]) * dtype_size(cache.dtype),
               cache.shape[3]);
        }
      }
    }
  }
};

Status check_tokens(const TensorView& keys, const TensorView& values, const TensorView& key_cache,
                    const TensorView& value_cache) {
  const int64_t num_kv_heads = key_cache.shape[0];
  PAGEFILL_RETURN_IF_ERROR(check_tensor(
      "keys", keys,
      {{"total_tokens"}, {"num_kv_heads", num_kv_heads}, {"head_dim", key_cache.shape[3]}}));
  PAGEFILL_RETURN_IF_ERROR(
      check_dtype("keys", keys, {DType::kFloat32, DType::kBFloat16, DType::kFloat16}));
  PAGEFILL_RETURN_IF_ERROR(check_tensor("values", values,
                                        {{"total_tokens", keys.shape[0]},
                                         {"num_kv_heads", num_kv_heads},
                                         {"v_head_dim", value_cache.shape[3]}}));
  return check_dtype("values", values, {keys.dtype});
}

// The new tokens of sequence s have slots.
Status check_slots(const Problem& batch, int64_t s) {
  const SequenceGeometry seq = batch.sequence(s);
  if (seq.num_rows == 0) return {};
  if (seq.position(0) < 0) {
    return invalid_argument(
        fmt::format("context_lens: expected at least {} (the new tokens), got {} in sequence {}",
                    seq.num_rows, seq.context_len, s));
  }
  if (seq.position(0) < seq.kv_start) {
    return invalid_argument(
        fmt::format("kv_start: expected at most {} (the position of the first new token), got {} "
                    "in sequence {}",
                    seq.position(0), seq.kv_start, s));
  }
  PAGEFILL_RETURN_IF_ERROR(check_capacity(batch.page_table, s, seq, batch.page_size, kRaggedNames));
  return check_pages(batch.page_table, s, seq, {seq.position(0), seq.context_len}, batch.page_size,
                     batch.key_cache.shape[1], kRaggedNames);
}

// What is written shares nothing with what is read.
Status check_memory(const Transfer (&transfers)[2], const Problem& batch) {
  struct Named {
    const char* name;
    TensorView view;
  };
  const Named read[] = {{"keys", transfers[0].tokens},        {"values", transfers[1].tokens},
                        {"query_starts", batch.query_starts}, {"context_lens", batch.context_lens},
                        {"page_table", batch.page_table},     {"kv_start", batch.kv_start}};
  for (const Named& r : read) {
    PAGEFILL_RETURN_IF_ERROR(check_disjoint("key_cache", transfers[0].cache, r.name, r.view));
    PAGEFILL_RETURN_IF_ERROR(check_disjoint("value_cache", transfers[1].cache, r.name, r.view));
  }
  return check_written_caches(transfers[0].cache, transfers[1].cache);
}

}  // namespace

Status append_kv(const TensorView& keys, const TensorView& values,
                 const MutableTensorView& key_cache, const MutableTensorView& value_cache,
                 const TensorView& query_starts, const TensorView& context_lens,
                 const TensorView& page_table, const TensorView& kv_start, const Context& context) {
  PAGEFILL_RETURN_IF_ERROR(check_caches(key_cache, value_cache));
  PAGEFILL_RETURN_IF_ERROR(
      check_dtype("key_cache", key_cache, {DType::kFloat32, DType::kBFloat16, DType::kFloat16}));
  PAGEFILL_RETURN_IF_ERROR(check_tokens(keys, values, key_cache, value_cache));
  PAGEFILL_RETURN_IF_ERROR(
      check_batch({query_starts, context_lens, page_table}, kv_start, keys.shape[0], kRaggedNames));
  Problem batch;
  batch.key_cache = key_cache;
  batch.query_starts = query_starts;
  batch.context_lens = context_lens;
  batch.page_table = page_table;
  batch.kv_start = kv_start;
  batch.num_seqs = context_lens.shape[0];
  batch.page_size = key_cache.shape[2];
  int64_t num_tokens = 0;
  for (int64_t s = 0; s < batch.num_seqs; ++s) {
    PAGEFILL_RETURN_IF_ERROR(check_slots(batch, s));
    num_tokens += batch.sequence(s).num_rows;
  }
  const Transfer transfers[] = {{keys, key_cache}, {values, value_cache}};
  PAGEFILL_RETURN_IF_ERROR(check_memory(transfers, batch));
  const Result<Selection> where = select_backend(context);
  if (!where.ok()) return where.status();

  const int64_t num_kv_heads = key_cache.shape[0];
  const int64_t bytes = num_tokens * num_kv_heads * (key_cache.shape[3] + value_cache.shape[3]) *
                        dtype_size(key_cache.dtype);
  return write_heads(context, threads_for_bytes(bytes, where->settings.num_threads), num_kv_heads,
                     [&](Cache cache, int64_t head_begin, int64_t head_end) {
                       transfers[static_cast<int>(cache)].write(batch, head_begin, head_end);
                     });
}

}  // namespace pagefill
