#include "validate.h"

#include <fmt/format.h>

#include <cmath>

#include "checks.h"

namespace pagefill {
namespace {

constexpr std::initializer_list<DType> kFloats = {DType::kFloat32, DType::kBFloat16,
                                                  DType::kFloat16};
constexpr std::initializer_list<DType> kCacheDTypes = {DType::kFloat32,    DType::kBFloat16,
                                                       DType::kFloat16,    DType::kInt8,
                                                       DType::kFloat8E4M3, DType::kFloat8E5M2};

Status check_head_dim(std::string_view tensor, std::string_view name, int64_t dim) {
  if (dim >= kHeadDimMultiple && dim <= kMaxHeadDim && dim % kHeadDimMultiple == 0) return {};
  return invalid_argument(fmt::format("{}: expected {} a multiple of {} from {} to {}, got {}",
                                      tensor, name, kHeadDimMultiple, kHeadDimMultiple, kMaxHeadDim,
                                      dim));
}

int64_t at(const TensorView& view, int64_t i) {
  return static_cast<const int32_t*>(view.data)[i * view.strides[0]];
}

Status check_options(const AttentionOptions& options, int64_t num_q_heads) {
  if (options.softmax_scale && !std::isfinite(*options.softmax_scale)) {
    return invalid_argument(
        fmt::format("softmax_scale: expected a finite number, got {}", *options.softmax_scale));
  }
  const auto& cap = options.attn_logits_soft_cap;
  if (cap && !(*cap > 0 && std::isfinite(*cap))) {
    return invalid_argument(
        fmt::format("attn_logits_soft_cap: expected a finite number > 0, got {}", *cap));
  }
  if (options.sliding_window && *options.sliding_window < 1) {
    return invalid_argument(
        fmt::format("sliding_window: expected at least 1, got {}", *options.sliding_window));
  }
  if (std::isnan(options.mask_value) || options.mask_value == INFINITY) {
    return invalid_argument(
        fmt::format("mask_value: expected a finite number or -inf, got {}", options.mask_value));
  }
  if (options.sinks.given()) {
    PAGEFILL_RETURN_IF_ERROR(check_tensor("sinks", options.sinks, {{"num_q_heads", num_q_heads}}));
    PAGEFILL_RETURN_IF_ERROR(check_dtype("sinks", options.sinks, {DType::kFloat32}));
  }
  return {};
}

Status check_all_pages(const Problem& p, const BatchNames& names) {
  for (int64_t s = 0; s < p.num_seqs; ++s) {
    const SequenceGeometry seq = p.sequence(s);
    PAGEFILL_RETURN_IF_ERROR(check_capacity(p.page_table, s, seq, p.page_size, names));
    PAGEFILL_RETURN_IF_ERROR(check_pages(p.page_table, s, seq,
                                         p.mask.attended(seq, 0, seq.num_rows), p.page_size,
                                         p.key_cache.shape[1], names));
  }
  return {};
}

Status check_scale_of(std::string_view name, const TensorView& scale, std::string_view cache_name,
                      const TensorView& cache, std::initializer_list<Shape> shapes) {
  if (!scale.given()) return {};
  if (!is_quantised(cache.dtype)) {
    return invalid_argument(fmt::format("{}: expected none, as {} is {} and not quantised, got {}",
                                        name, cache_name, dtype_name(cache.dtype),
                                        shape_string(scale)));
  }
  PAGEFILL_RETURN_IF_ERROR(check_tensor_of_shapes(name, scale, shapes, Innermost::kAnyStride));
  return check_dtype(name, scale, {DType::kFloat32});
}

}  // namespace

Status check_caches(const TensorView& key_cache, const TensorView& value_cache) {
  PAGEFILL_RETURN_IF_ERROR(
      check_tensor("key_cache", key_cache,
                   {{"num_kv_heads"}, {"total_num_pages"}, {"page_size"}, {"head_dim"}}));
  PAGEFILL_RETURN_IF_ERROR(check_dtype("key_cache", key_cache, kCacheDTypes));
  if (key_cache.shape[0] < 1) {
    return invalid_argument("key_cache: expected num_kv_heads of at least 1, got 0");
  }
  if (key_cache.shape[2] < 1) {
    return invalid_argument("key_cache: expected page_size of at least 1, got 0");
  }
  PAGEFILL_RETURN_IF_ERROR(check_head_dim("key_cache", "head_dim", key_cache.shape[3]));
  PAGEFILL_RETURN_IF_ERROR(check_tensor("value_cache", value_cache,
                                        {{"num_kv_heads", key_cache.shape[0]},
                                         {"total_num_pages", key_cache.shape[1]},
                                         {"page_size", key_cache.shape[2]},
                                         {"v_head_dim"}}));
  PAGEFILL_RETURN_IF_ERROR(check_dtype("value_cache", value_cache, {key_cache.dtype}));
  return check_head_dim("value_cache", "v_head_dim", value_cache.shape[3]);
}

Status check_scale(std::string_view name, const TensorView& scale, std::string_view cache_name,
                   const TensorView& cache) {
  return check_scale_of(name, scale, cache_name, cache,
                        {{{"1", 1}},
                         {{"num_kv_heads", cache.shape[0]}},
                         {{"num_kv_heads", cache.shape[0]},
                          {"total_num_pages", cache.shape[1]},
                          {"page_size", cache.shape[2]}}});
}

Status check_slot_scale(std::string_view name, const TensorView& scale, std::string_view cache_name,
                        const TensorView& cache) {
  return check_scale_of(name, scale, cache_name, cache,
                        {{{"num_kv_heads", cache.shape[0]},
                          {"total_num_pages", cache.shape[1]},
                          {"page_size", cache.shape[2]}}});
}

CacheScale cache_scale(const TensorView& scale) {
  const auto& strides = without_idle_strides(scale).strides;
  const auto* data = static_cast<const float*>(scale.data);
  if (scale.rank == 3) return {data, strides[0], strides[1], strides[2]};
  return {data, strides[0], 0, 0};
}

Status check_batch(const Batch& batch, const TensorView& kv_start, int64_t total_tokens,
                   const BatchNames& names) {
  PAGEFILL_RETURN_IF_ERROR(check_tensor(names.context_lens, batch.context_lens, {{"num_seqs"}}));
  PAGEFILL_RETURN_IF_ERROR(check_dtype(names.context_lens, batch.context_lens, {DType::kInt32}));
  const int64_t num_seqs = batch.context_lens.shape[0];
  const bool has_starts = names.has_query_starts;
  if (has_starts) {
    PAGEFILL_RETURN_IF_ERROR(
        check_tensor("query_starts", batch.query_starts, {{"num_seqs + 1", num_seqs + 1}}));
    PAGEFILL_RETURN_IF_ERROR(check_dtype("query_starts", batch.query_starts, {DType::kInt32}));
  }
  PAGEFILL_RETURN_IF_ERROR(
      check_tensor(names.page_table, batch.page_table, {{"num_seqs", num_seqs}, {"max_pages"}}));
  PAGEFILL_RETURN_IF_ERROR(check_dtype(names.page_table, batch.page_table, {DType::kInt32}));
  if (kv_start.given()) {
    PAGEFILL_RETURN_IF_ERROR(check_tensor("kv_start", kv_start, {{"num_seqs", num_seqs}}));
    PAGEFILL_RETURN_IF_ERROR(check_dtype("kv_start", kv_start, {DType::kInt32}));
  }

  if (batch.context_lens.device.type != DeviceType::kCpu) return {};
  if (has_starts && at(batch.query_starts, 0) != 0) {
    return invalid_argument(fmt::format("query_starts: expected 0 as its first entry, got {}",
                                        at(batch.query_starts, 0)));
  }
  for (int64_t s = 0; s < num_seqs; ++s) {
    const int64_t start = has_starts ? at(batch.query_starts, s) : 0;
    const int64_t end = has_starts ? at(batch.query_starts, s + 1) : total_tokens;
    if (end < start || end > total_tokens) {
      return invalid_argument(fmt::format(
          "query_starts: expected entry {} from {} (the one before) to {} (total_tokens), got {}",
          s + 1, start, total_tokens, end));
    }
    if (at(batch.context_lens, s) < 0) {
      return invalid_argument(fmt::format("{}: expected lengths >= 0, got {} in sequence {}",
                                          names.context_lens, at(batch.context_lens, s), s));
    }
    if (kv_start.given() && at(kv_start, s) < 0) {
      return invalid_argument(fmt::format(
          "kv_start: expected positions >= 0, got {} in sequence {}", at(kv_start, s), s));
    }
  }
  return {};
}

Status check_capacity(const TensorView& page_table, int64_t s, const SequenceGeometry& seq,
                      int64_t page_size, const BatchNames& names) {
  const int64_t max_pages = page_table.shape[1];
  if (ceil_div(seq.context_len - seq.kv_start, page_size) <= max_pages) return {};
  // The product is small: below the context, which is an int32.
  return invalid_argument(fmt::format(
      "{}: expected at most {} tokens ({} pages of {} slots from position {}), got {}{}",
      names.context_lens, seq.kv_start + max_pages * page_size, max_pages, page_size, seq.kv_start,
      seq.context_len, page_table.shape[0] > 1 ? fmt::format(" in sequence {}", s) : ""));
}

Status check_pages(const TensorView& page_table, int64_t s, const SequenceGeometry& seq,
                   KeyRange range, int64_t page_size, int64_t total_num_pages,
                   const BatchNames& names) {
  if (range.empty()) return {};
  const auto* row = static_cast<const int32_t*>(page_table.data) + s * page_table.strides[0];
  const int64_t last = (range.end - 1 - seq.kv_start) / page_size;
  for (int64_t page = (range.begin - seq.kv_start) / page_size; page <= last; ++page) {
    const int64_t entry = row[page * page_table.strides[1]];
    if (entry < 0 || entry >= total_num_pages) {
      return invalid_argument(fmt::format(
          "{}: expected pages from 0 to {} where a visible key lies, got {} in entry {} of "
          "sequence {}",
          names.page_table, total_num_pages - 1, entry, page, s));
    }
  }
  return {};
}

Result<Problem> validate(const TensorView& query, const TensorView& key_cache,
                         const TensorView& value_cache, const Batch& batch,
                         const AttentionOptions& options, const AttentionOutput& output,
                         const BatchNames& names) {
  PAGEFILL_RETURN_IF_ERROR(check_same_device({{"key_cache", key_cache},
                                              {"query", query},
                                              {"value_cache", value_cache},
                                              {"query_starts", batch.query_starts},
                                              {names.context_lens, batch.context_lens},
                                              {names.page_table, batch.page_table},
                                              {"sinks", options.sinks},
                                              {"kv_start", options.kv_start},
                                              {"key_scale", options.key_scale},
                                              {"value_scale", options.value_scale},
                                              {"output", output.output},
                                              {"lse", output.lse}}));
  PAGEFILL_RETURN_IF_ERROR(
      check_tensor("query", query, {{names.total_tokens}, {"num_q_heads"}, {"head_dim"}}));
  PAGEFILL_RETURN_IF_ERROR(check_dtype("query", query, kFloats));
  PAGEFILL_RETURN_IF_ERROR(check_head_dim("query", "head_dim", query.shape[2]));
  PAGEFILL_RETURN_IF_ERROR(check_caches(key_cache, value_cache));
  const int64_t total_tokens = query.shape[0], num_q_heads = query.shape[1];
  const int64_t num_kv_heads = key_cache.shape[0], v_head_dim = value_cache.shape[3];
  if (key_cache.shape[3] != query.shape[2]) {
    return invalid_argument(fmt::format("key_cache: expected head_dim {} (query's), got {}",
                                        query.shape[2], key_cache.shape[3]));
  }
  if (num_q_heads < 1 || num_q_heads % num_kv_heads != 0) {
    return invalid_argument(
        fmt::format("query: expected num_q_heads a multiple of num_kv_heads {}, got {}",
                    num_kv_heads, num_q_heads));
  }
  PAGEFILL_RETURN_IF_ERROR(check_options(options, num_q_heads));
  PAGEFILL_RETURN_IF_ERROR(check_scale("key_scale", options.key_scale, "key_cache", key_cache));
  PAGEFILL_RETURN_IF_ERROR(
      check_scale("value_scale", options.value_scale, "value_cache", value_cache));
  PAGEFILL_RETURN_IF_ERROR(check_batch(batch, options.kv_start, total_tokens, names));
  PAGEFILL_RETURN_IF_ERROR(check_tensor("output", output.output,
                                        {{names.total_tokens, total_tokens},
                                         {"num_q_heads", num_q_heads},
                                         {"v_head_dim", v_head_dim}}));
  PAGEFILL_RETURN_IF_ERROR(check_dtype("output", output.output, {query.dtype}));
  if (output.lse.given()) {
    PAGEFILL_RETURN_IF_ERROR(check_tensor(
        "lse", output.lse, {{names.total_tokens, total_tokens}, {"num_q_heads", num_q_heads}}));
    PAGEFILL_RETURN_IF_ERROR(check_dtype("lse", output.lse, {DType::kFloat32}));
  }

  Problem p;
  p.query = without_idle_strides(query);
  p.key_cache = without_idle_strides(key_cache);
  p.value_cache = without_idle_strides(value_cache);
  p.output = without_idle_strides(output.output);
  p.lse = without_idle_strides(output.lse);
  p.query_starts = without_idle_strides(batch.query_starts);
  p.context_lens = without_idle_strides(batch.context_lens);
  p.page_table = without_idle_strides(batch.page_table);
  p.kv_start = without_idle_strides(options.kv_start);
  p.sinks = without_idle_strides(options.sinks);
  p.device = key_cache.device;
  p.num_seqs = batch.context_lens.shape[0];
  p.num_q_heads = num_q_heads;
  p.num_kv_heads = num_kv_heads;
  p.group = num_q_heads / num_kv_heads;
  p.head_dim = query.shape[2];
  p.v_head_dim = v_head_dim;
  p.page_size = key_cache.shape[2];
  p.softmax_scale =
      options.softmax_scale.value_or(1.0f / std::sqrt(static_cast<float>(query.shape[2])));
  p.attn_logits_soft_cap = options.attn_logits_soft_cap;
  p.mask_value = options.mask_value;
  p.key_scale = cache_scale(options.key_scale);
  p.value_scale = cache_scale(options.value_scale);
  p.mask = {options.sliding_window.value_or(kNoWindow), options.mask_value > kMaskExcludes};
  PAGEFILL_RETURN_IF_ERROR(check_written({{"output", p.output}, {"lse", p.lse}},
                                         {{"query", p.query},
                                          {"key_cache", p.key_cache},
                                          {"value_cache", p.value_cache},
                                          {"query_starts", p.query_starts},
                                          {names.context_lens, p.context_lens},
                                          {names.page_table, p.page_table},
                                          {"kv_start", p.kv_start},
                                          {"sinks", p.sinks},
                                          {"key_scale", options.key_scale},
                                          {"value_scale", options.value_scale}}));
  if (p.device.type == DeviceType::kCpu) PAGEFILL_RETURN_IF_ERROR(check_all_pages(p, names));
  return p;
}

}  // namespace pagefill
