#include <fmt/format.h>

#include <algorithm>

#include "backend.h"
#include "checks.h"
#include "kv_cache/cache_memory.h"
#include "kv_cache/rows.h"
#include "pagefill/kv_cache.h"
#include "validate.h"

namespace pagefill {
namespace {

float scale_of(const Transfer& t, const Problem& batch, int64_t s, const SequenceGeometry& seq,
               int64_t head, int64_t position, const std::byte* row) {
  if (!t.chosen_scale.given()) return batch.slot_scale(t.scale, s, seq, head, position);
  const float chosen = scale_chooser(t.tokens.dtype, t.cache.dtype)(row, t.cache.shape[3]);
  static_cast<float*>(
      t.chosen_scale.data)[batch.slot_offset(t.chosen_scale, s, seq, head, position)] = chosen;
  return chosen;
}

// `batch` knows where the tokens go: the slots in which attention will look for them.
void write(const Transfer& t, const Problem& batch, int64_t head_begin, int64_t head_end) {
  const WriteRow write_row = row_writer(t.tokens.dtype, t.cache.dtype);
  const auto* source = static_cast<const std::byte*>(t.tokens.data);
  auto* destination = static_cast<std::byte*>(t.cache.data);
  for (int64_t s = 0; s < batch.num_seqs; ++s) {
    const SequenceGeometry seq = batch.sequence(s);
    for (int64_t i = 0; i < seq.num_rows; ++i) {
      const int64_t token = (seq.query_start + i) * t.tokens.strides[0];
      const int64_t slot = batch.slot_offset(t.cache, s, seq, 0, seq.position(i));
      for (int64_t head = head_begin; head < head_end; ++head) {
        const std::byte* row =
            source + (token + head * t.tokens.strides[1]) * dtype_size(t.tokens.dtype);
        write_row(row, destination + (slot + head * t.cache.strides[0]) * dtype_size(t.cache.dtype),
                  t.cache.shape[3], scale_of(t, batch, s, seq, head, seq.position(i), row));
      }
    }
  }
}

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

// A cache is quantised with scales that are given, or with scales that are chosen.
Status check_scales(const TensorView& key_cache, const TensorView& value_cache,
                    const AppendOptions& options) {
  struct Row {
    const char *cache_name, *name, *chosen_name;
    const TensorView &cache, &scale;
    const MutableTensorView& chosen;
  };
  const Row rows[] = {{"key_cache", "key_scale", "chosen_key_scale", key_cache, options.key_scale,
                       options.chosen_key_scale},
                      {"value_cache", "value_scale", "chosen_value_scale", value_cache,
                       options.value_scale, options.chosen_value_scale}};
  for (const Row& row : rows) {
    PAGEFILL_RETURN_IF_ERROR(check_scale(row.name, row.scale, row.cache_name, row.cache));
    PAGEFILL_RETURN_IF_ERROR(
        check_slot_scale(row.chosen_name, row.chosen, row.cache_name, row.cache));
    if (row.scale.given() && row.chosen.given()) {
      return invalid_argument(fmt::format("{}: expected none beside {}, got {}", row.name,
                                          row.chosen_name, shape_string(row.scale)));
    }
  }
  return {};
}

}  // namespace

Status append_kv(const TensorView& keys, const TensorView& values,
                 const MutableTensorView& key_cache, const MutableTensorView& value_cache,
                 const TensorView& query_starts, const TensorView& context_lens,
                 const TensorView& page_table, const AppendOptions& options,
                 const Context& context) {
  PAGEFILL_RETURN_IF_ERROR(check_same_device({{"key_cache", key_cache},
                                              {"value_cache", value_cache},
                                              {"keys", keys},
                                              {"values", values},
                                              {"query_starts", query_starts},
                                              {"context_lens", context_lens},
                                              {"page_table", page_table},
                                              {"kv_start", options.kv_start},
                                              {"key_scale", options.key_scale},
                                              {"value_scale", options.value_scale},
                                              {"chosen_key_scale", options.chosen_key_scale},
                                              {"chosen_value_scale", options.chosen_value_scale}}));
  PAGEFILL_RETURN_IF_ERROR(check_caches(key_cache, value_cache));
  PAGEFILL_RETURN_IF_ERROR(check_tokens(keys, values, key_cache, value_cache));
  PAGEFILL_RETURN_IF_ERROR(check_scales(key_cache, value_cache, options));
  PAGEFILL_RETURN_IF_ERROR(check_batch({query_starts, context_lens, page_table}, options.kv_start,
                                       keys.shape[0], kRaggedNames));
  AppendProblem problem;
  Problem& batch = problem.batch;
  batch.key_cache = without_idle_strides(key_cache);
  batch.query_starts = without_idle_strides(query_starts);
  batch.context_lens = without_idle_strides(context_lens);
  batch.page_table = without_idle_strides(page_table);
  batch.kv_start = without_idle_strides(options.kv_start);
  batch.device = key_cache.device;
  batch.num_seqs = context_lens.shape[0];
  batch.page_size = key_cache.shape[2];
  int64_t num_tokens = 0;
  const bool on_cpu = key_cache.device.type == DeviceType::kCpu;
  for (int64_t s = 0; s < batch.num_seqs && on_cpu; ++s) {
    PAGEFILL_RETURN_IF_ERROR(check_slots(batch, s));
    num_tokens += batch.sequence(s).num_rows;
  }
  problem.keys = {without_idle_strides(keys), without_idle_strides(key_cache),
                  cache_scale(options.key_scale), without_idle_strides(options.chosen_key_scale)};
  problem.values = {without_idle_strides(values), without_idle_strides(value_cache),
                    cache_scale(options.value_scale),
                    without_idle_strides(options.chosen_value_scale)};
  PAGEFILL_RETURN_IF_ERROR(check_written({{"key_cache", key_cache},
                                          {"value_cache", value_cache},
                                          {"chosen_key_scale", options.chosen_key_scale},
                                          {"chosen_value_scale", options.chosen_value_scale}},
                                         {{"keys", keys},
                                          {"values", values},
                                          {"query_starts", query_starts},
                                          {"context_lens", context_lens},
                                          {"page_table", page_table},
                                          {"kv_start", options.kv_start},
                                          {"key_scale", options.key_scale},
                                          {"value_scale", options.value_scale}}));
  const Result<Selection> where = select_backend(context, key_cache.device.type);
  if (!where.ok()) return where.status();
  PAGEFILL_RETURN_IF_ERROR(check_cuda_settings(context.cuda, key_cache));
  if (!on_cpu) return where->backend->append_kv(problem, where->settings);

  const int64_t num_kv_heads = key_cache.shape[0];
  const int64_t bytes = num_tokens * num_kv_heads * (key_cache.shape[3] + value_cache.shape[3]) *
                        std::max(dtype_size(keys.dtype), dtype_size(key_cache.dtype));
  return write_heads(context, threads_for_bytes(bytes, where->settings.num_threads), num_kv_heads,
                     [&](Cache cache, int64_t head_begin, int64_t head_end) {
                       const Transfer& t = cache == Cache::kKey ? problem.keys : problem.values;
                       write(t, batch, head_begin, head_end);
                     });
}

}  // namespace pagefill
