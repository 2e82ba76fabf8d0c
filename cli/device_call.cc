#include "device_call.h"

#include <array>
#include <new>

#include "operands.h"

namespace pagefill::cli {
namespace {

// The operands of a call of either kind.
struct HostCall {
  const TensorView &query, &key_cache, &value_cache;
  TensorView query_starts;  // not given: a call of one sequence
  const TensorView &context_lens, &page_table;
  const AttentionOptions& options;
  const AttentionOutput& output;
  const Context& context;
};

// The batch of one, of which the workspace's size is asked.
TensorView as_table(TensorView page_indices) {
  page_indices.rank = 2;
  page_indices.shape = {1, page_indices.shape[0]};
  page_indices.strides = {0, page_indices.strides[0]};
  return page_indices;
}

Status run_on_device(const HostCall& host) try {
  const std::array<int32_t, 2> starts_of_one{
      0, static_cast<int32_t>(host.query.rank > 0 ? host.query.shape[0] : 0)};
  const bool is_ragged = host.query_starts.given();
  Operands operands(host.context, true);
  const TensorView query = operands.copy(host.query), key_cache = operands.copy(host.key_cache),
                   value_cache = operands.copy(host.value_cache),
                   context_lens = operands.copy(host.context_lens),
                   page_table = operands.copy(host.page_table);
  const TensorView query_starts =
      operands.copy(is_ragged ? host.query_starts : TensorView(starts_of_one));
  AttentionOptions options = host.options;
  options.sinks = operands.copy(options.sinks);
  options.kv_start = operands.copy(options.kv_start);
  options.key_scale = operands.copy(options.key_scale);
  options.value_scale = operands.copy(options.value_scale);
  const AttentionOutput output{operands.copy(host.output.output), operands.copy(host.output.lse)};
  if (!operands.status().ok()) return operands.status();

  const Result<size_t> size = attention_workspace_size(
      query, key_cache, value_cache, query_starts, context_lens,
      is_ragged ? page_table : as_table(page_table), options, output, operands.context());
  if (!size.ok()) return size.status();
  operands.give_workspace(*size);
  Status status =
      is_ragged ? ragged_page_attention(query, key_cache, value_cache, query_starts, context_lens,
                                        page_table, options, output, operands.context())
                : prefill_page_attention(query, key_cache, value_cache, context_lens, page_table,
                                         options, output, operands.context());
  if (status.ok()) status = operands.finish();
  if (status.ok()) status = operands.copy_back(output.output, host.output.output);
  if (status.ok() && output.lse.given()) status = operands.copy_back(output.lse, host.output.lse);
  return status;
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kResourceExhausted, "operands: out of device memory");
}

}  // namespace

Status prefill_from_host(const TensorView& query, const TensorView& key_cache,
                         const TensorView& value_cache, const TensorView& context_len,
                         const TensorView& page_indices, const AttentionOptions& options,
                         const AttentionOutput& output, const Context& context) {
  if (!runs_on_device(context)) {
    return prefill_page_attention(query, key_cache, value_cache, context_len, page_indices, options,
                                  output, context);
  }
  return run_on_device(
      {query, key_cache, value_cache, {}, context_len, page_indices, options, output, context});
}

Status ragged_from_host(const TensorView& query, const TensorView& key_cache,
                        const TensorView& value_cache, const TensorView& query_starts,
                        const TensorView& context_lens, const TensorView& page_table,
                        const AttentionOptions& options, const AttentionOutput& output,
                        const Context& context) {
  if (!runs_on_device(context)) {
    return ragged_page_attention(query, key_cache, value_cache, query_starts, context_lens,
                                 page_table, options, output, context);
  }
  return run_on_device({query, key_cache, value_cache, query_starts, context_lens, page_table,
                        options, output, context});
}

}  // namespace pagefill::cli
