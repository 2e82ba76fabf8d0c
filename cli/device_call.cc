#include "device_call.h"

#include <fmt/format.h>

#include <array>
#include <new>
#include <vector>

#include "device_memory.h"

namespace pagefill::cli {
namespace {

constexpr Device kDevice{DeviceType::kCuda, 0};

// From the first element to the end of the last.
size_t span_bytes(const TensorView& view) {
  int64_t last = 0;
  for (int i = 0; i < view.rank && i < kMaxRank; ++i) {
    if (view.shape[i] <= 0) return 0;
    last += (view.shape[i] - 1) * view.strides[i];
  }
  return static_cast<size_t>((last + 1) * dtype_size(view.dtype));
}

// Host memory on the device. Keeps the first error.
class Operands {
 public:
  template <typename View>
  View copy(View view) {
    if (!view.given()) return view;
    const size_t size = span_bytes(view);
    memory_.emplace_back(size);
    if (status_.ok() && size > 0) status_ = copy_to_device(memory_.back().data(), view.data, size);
    view.data = memory_.back().data();
    view.device = kDevice;
    return view;
  }
  const Status& status() const { return status_; }

 private:
  std::vector<DeviceMemory> memory_;
  Status status_;
};

Status copy_back(const MutableTensorView& device, const MutableTensorView& host) {
  const size_t size = span_bytes(host);
  return size == 0 ? Status() : copy_to_host(host.data, device.data, size);
}

Status error_of(const std::array<int32_t, 4>& reported) {
  const auto [code, sequence, entry, value] = reported;
  const auto error = [](std::string message) {
    return Status(StatusCode::kInvalidArgument, std::move(message));
  };
  switch (static_cast<CudaStatusCode>(code)) {
    case CudaStatusCode::kOk:
      return {};
    case CudaStatusCode::kQueryStarts:
      return error(
          fmt::format("query_starts: expected entries that begin with 0, never decrease "
                      "and stay within total_tokens, got {} in entry {}",
                      value, entry));
    case CudaStatusCode::kContextLens:
      return error(
          fmt::format("context_lens: expected lengths from 0 to what page_table has room "
                      "for, got {} in sequence {}",
                      value, sequence));
    case CudaStatusCode::kKvStart:
      return error(
          fmt::format("kv_start: expected positions >= 0, got {} in sequence {}", value, sequence));
    case CudaStatusCode::kPageTable:
      return error(
          fmt::format("page_table: expected pages of the cache where a visible key lies, "
                      "got {} in entry {} of sequence {}",
                      value, entry, sequence));
    case CudaStatusCode::kChunkSize:
      return error(
          fmt::format("query_starts: expected at most max_chunk_size rows, got {} in "
                      "sequence {}",
                      value, sequence));
  }
  return Status(StatusCode::kInternal, fmt::format("the device reported code {}", code));
}

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
  std::array<int32_t, 4> reported{};
  const std::array<int32_t, 2> starts_of_one{
      0, static_cast<int32_t>(host.query.rank > 0 ? host.query.shape[0] : 0)};
  const bool is_ragged = host.query_starts.given();
  Operands operands;
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
  Context context = host.context;
  context.cuda.status =
      operands.copy(MutableTensorView(reported.data(), DType::kInt32, {std::ssize(reported)}));
  if (!operands.status().ok()) return operands.status();

  const Result<size_t> size = attention_workspace_size(
      query, key_cache, value_cache, query_starts, context_lens,
      is_ragged ? page_table : as_table(page_table), options, output, context);
  if (!size.ok()) return size.status();
  const DeviceMemory workspace(*size);
  context.workspace = {workspace.data(), workspace.size()};
  Status status = is_ragged
                      ? ragged_page_attention(query, key_cache, value_cache, query_starts,
                                              context_lens, page_table, options, output, context)
                      : prefill_page_attention(query, key_cache, value_cache, context_lens,
                                               page_table, options, output, context);
  if (status.ok()) status = wait_for_device();
  if (status.ok()) {
    status = copy_to_host(reported.data(), context.cuda.status.data, sizeof(reported));
  }
  if (status.ok()) status = error_of(reported);
  if (status.ok()) status = copy_back(output.output, host.output.output);
  if (status.ok() && output.lse.given()) status = copy_back(output.lse, host.output.lse);
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
