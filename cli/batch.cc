#include "batch.h"

#include <algorithm>
#include <new>

#include "device_call.h"

namespace pagefill::cli {

KeyRange Batch::visible_keys(int64_t s, int64_t position) const {
  if (position < 0) return {};
  KeyRange keys{kv_start(s), std::min(position + 1, context_len(s))};
  // The window may be any int64: position - window + 1 must not overflow.
  if (options.sliding_window && *options.sliding_window <= position) {
    keys.begin = std::max(keys.begin, position - *options.sliding_window + 1);
  }
  return keys;
}

KeyRange Batch::attended_keys(int64_t s, int64_t position) const {
  if (position < 0) return {};
  return masked_keys_count() ? KeyRange{kv_start(s), context_len(s)} : visible_keys(s, position);
}

KeyRange Batch::attended_keys(int64_t s) const {
  KeyRange all;
  for (int64_t i = 0; i < num_rows(s); ++i) {
    const KeyRange keys = attended_keys(s, position(s, i));
    if (keys.empty()) continue;
    all =
        all.empty() ? keys : KeyRange{std::min(all.begin, keys.begin), std::max(all.end, keys.end)};
  }
  return all;
}

int64_t Batch::physical_page(int64_t s, int64_t position) const {
  const auto* row = static_cast<const int32_t*>(page_table.data) + s * page_table.strides[0];
  return row[logical_page(s, position) * page_table.strides[1]];
}

int64_t Batch::offset(const TensorView& cache, int64_t s, int64_t kv_head, int64_t position) const {
  return kv_head * cache.strides[0] + physical_page(s, position) * cache.strides[1] +
         slot(s, position) * cache.strides[2];
}

double Batch::scale(const TensorView& scale, int64_t s, int64_t kv_head, int64_t position) const {
  if (!scale.given()) return 1;
  if (scale.rank == 3) return load(scale, offset(scale, s, kv_head, position));
  return load(scale, scale.shape[0] == 1 ? 0 : kv_head * scale.strides[0]);
}

State state_for(const Batch& batch) {
  const int64_t total_tokens = batch.query.shape[0], num_q_heads = batch.query.shape[1];
  const int64_t v_head_dim = batch.value_cache.shape[3];
  return {Tensor::zeros(batch.query.dtype, {total_tokens, num_q_heads, v_head_dim}),
          Tensor::zeros(DType::kFloat32, {total_tokens, num_q_heads})};
}

Result<State> attend(const Batch& batch, const Context& context) try {
  State state = state_for(batch);
  const Status status = ragged_from_host(
      batch.query, batch.key_cache, batch.value_cache, batch.query_starts, batch.context_lens,
      batch.page_table, batch.options, {state.output.view(), state.lse.view()}, context);
  if (!status.ok()) return status;
  return state;
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kResourceExhausted, "output: out of memory");
}

}  // namespace pagefill::cli
