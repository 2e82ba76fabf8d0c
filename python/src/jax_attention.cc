// pagefill_jax_attention: ragged_page_attention, or prefill_page_attention where query_starts is not
// given, as an XLA FFI handler, for the CPU and for CUDA.
//
//   operands   query, key_cache, value_cache, context_lens, page_table; then those that `given` names; for
//              CUDA and with query_starts, then what stands in output and lse where the call writes nothing
//   results    output; lse where there is one; for CUDA, then status where given, in its place, and the workspace
//   attributes given (bits of Given); flags (PAGEFILL_HAS_...) and the options that they name; for CUDA
//              max_chunk_size and max_context_len
#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "jax_call.h"

namespace pagefill::jax {
namespace {

// XLA's results are new memory, so that rows of no sequence get what a row without keys gets.
void fill_padding(const pagefill_tensor& query_starts, const pagefill_tensor& output,
                  const pagefill_tensor* lse) {
  const auto* starts = static_cast<const int32_t*>(query_starts.data);
  const int64_t first = starts[query_starts.shape[0] - 1], rows = output.shape[0] - first;
  const int64_t row_bytes = output.strides[0] * pagefill_dtype_size(output.dtype);
  std::memset(static_cast<char*>(output.data) + first * row_bytes, 0,
              static_cast<size_t>(rows * row_bytes));
  if (lse != nullptr) {
    std::fill_n(static_cast<float*>(lse->data) + first * lse->strides[0], rows * lse->strides[0],
                -std::numeric_limits<float>::infinity());
  }
}

struct Numbers {
  int32_t given, flags;
  float softmax_scale, attn_logits_soft_cap, mask_value;
  int64_t sliding_window;
};

template <typename Binding>
auto with_arguments(Binding&& binding) {
  return with_results<1>(with_operands<5>(std::move(binding)).RemainingArgs())
      .RemainingRets()
      .template Attr<int32_t>("given")
      .template Attr<int32_t>("flags")
      .template Attr<float>("softmax_scale")
      .template Attr<float>("attn_logits_soft_cap")
      .template Attr<float>("mask_value")
      .template Attr<int64_t>("sliding_window");
}

// The operands and results of a call, as the C interface takes them.
struct Call {
  pagefill_tensor query, key_cache, value_cache, context_lens, page_table, output;
  pagefill_tensor starts_memory, sinks, kv_start, key_scale, value_scale, lse_memory, status_memory;
  pagefill_attention_options options = pagefill_attention_options_init();
  const pagefill_tensor* query_starts = nullptr;
  const pagefill_tensor* lse = nullptr;
  const pagefill_tensor* status = nullptr;

  pagefill_status run(const pagefill_context* context) const {
    if (query_starts == nullptr) {
      return pagefill_prefill_page_attention(&query, &key_cache, &value_cache, &context_lens,
                                             &page_table, &options, &output, lse, context);
    }
    return pagefill_ragged_page_attention(&query, &key_cache, &value_cache, query_starts,
                                          &context_lens, &page_table, &options, &output, lse,
                                          context);
  }

  // Without query_starts the batch of one, of whose starts only the shape is looked at.
  pagefill_status workspace_size(const pagefill_context* context, size_t* size) const {
    pagefill_tensor starts = context_lens, table = page_table;
    if (query_starts == nullptr) {
      const int64_t two = 2, table_shape[] = {1, page_table.shape[0]};
      starts = pagefill_tensor_init(query.data, PAGEFILL_INT32, 1, &two);
      table = pagefill_tensor_init(page_table.data, PAGEFILL_INT32, 2, table_shape);
      starts.device_type = table.device_type = query.device_type;
      starts.device_index = table.device_index = query.device_index;
    }
    return pagefill_attention_workspace_size(
        &query, &key_cache, &value_cache, query_starts == nullptr ? &starts : query_starts,
        &context_lens, &table, &options, &output, lse, context, size);
  }
};

// False where operands or results are missing.
bool fill(Call& call, Place place, ffi::AnyBuffer query_buffer, ffi::AnyBuffer key_buffer,
          ffi::AnyBuffer value_buffer, ffi::AnyBuffer lengths_buffer, ffi::AnyBuffer table_buffer,
          const ffi::RemainingArgs& optional_operands, ffi::Result<ffi::AnyBuffer> output_buffer,
          ffi::RemainingRets results, bool with_lse, const Numbers& numbers) {
  const auto tensor = [&](const ffi::AnyBuffer& b) { return tensor_of(b, place); };
  call.query = tensor(query_buffer), call.key_cache = tensor(key_buffer);
  call.value_cache = tensor(value_buffer), call.context_lens = tensor(lengths_buffer);
  call.page_table = tensor(table_buffer), call.output = tensor(*output_buffer);
  OptionalOperands operands(optional_operands, numbers.given, place);
  call.query_starts = operands.next(kQueryStarts, call.starts_memory);

  pagefill_attention_options& options = call.options;
  options.flags = static_cast<uint32_t>(numbers.flags);
  options.softmax_scale = numbers.softmax_scale;
  options.attn_logits_soft_cap = numbers.attn_logits_soft_cap;
  options.mask_value = numbers.mask_value;
  options.sliding_window = numbers.sliding_window;
  options.sinks = operands.next(kSinks, call.sinks);
  options.kv_start = operands.next(kKvStart, call.kv_start);
  options.key_scale = operands.next(kKeyScale, call.key_scale);
  options.value_scale = operands.next(kValueScale, call.value_scale);
  call.status = operands.next(kStatus, call.status_memory);

  if (with_lse) {
    auto buffer = results.get<ffi::AnyBuffer>(0);
    if (!buffer.has_value()) return false;
    call.lse_memory = tensor(**buffer);
    call.lse = &call.lse_memory;
  }
  const bool has_padding = place.device_type == PAGEFILL_CUDA && call.query_starts != nullptr;
  return operands.complete(has_padding ? (with_lse ? 2 : 1) : 0);
}

ffi::Error on_cpu(ffi::ThreadPool pool, ffi::AnyBuffer query, ffi::AnyBuffer key_cache,
                  ffi::AnyBuffer value_cache, ffi::AnyBuffer context_lens,
                  ffi::AnyBuffer page_table, ffi::RemainingArgs optional_operands,
                  ffi::Result<ffi::AnyBuffer> output, ffi::RemainingRets results, int32_t given,
                  int32_t flags, float softmax_scale, float attn_logits_soft_cap, float mask_value,
                  int64_t sliding_window) {
  Call call;
  if (!fill(call, {}, query, key_cache, value_cache, context_lens, page_table, optional_operands,
            output, results, results.size() > 0,
            {given, flags, softmax_scale, attn_logits_soft_cap, mask_value, sliding_window})) {
    return wrong_operands("pagefill_jax_attention");
  }
  const PoolContext context(pool);
  const pagefill_status status = call.run(context.get());
  if (status == PAGEFILL_OK && call.query_starts != nullptr) {
    fill_padding(*call.query_starts, call.output, call.lse);
  }
  return error_of(status);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(pagefill_jax_attention, on_cpu,
                              with_arguments(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()));

#if PAGEFILL_WITH_CUDA
namespace {

template <typename Binding>
auto with_cuda_arguments(Binding&& binding) {
  return with_arguments(std::move(binding))
      .template Attr<int64_t>("max_chunk_size")
      .template Attr<int64_t>("max_context_len");
}

// The last result is the workspace. Where the lowering did not know its size, because there was no GPU or
// because a dimension was open, it has no bytes, and `scratch` gives them.
ffi::Error on_cuda(void* stream, ffi::ScratchAllocator* scratch, ffi::AnyBuffer query,
                   ffi::AnyBuffer key_cache, ffi::AnyBuffer value_cache,
                   ffi::AnyBuffer context_lens, ffi::AnyBuffer page_table,
                   ffi::RemainingArgs optional_operands, ffi::Result<ffi::AnyBuffer> output,
                   ffi::RemainingRets results, int32_t given, int32_t flags, float softmax_scale,
                   float attn_logits_soft_cap, float mask_value, int64_t sliding_window,
                   int64_t max_chunk_size, int64_t max_context_len) {
  StreamContext context(stream);
  context.set_maxima(max_chunk_size, max_context_len);
  const size_t last = results.size() - 1, num_statuses = (given & kStatus) != 0 ? 1 : 0;
  const bool with_lse = last > num_statuses;
  auto workspace = results.get<ffi::AnyBuffer>(last);
  Call call;
  if (!workspace.has_value() ||
      !fill(call, context.place(), query, key_cache, value_cache, context_lens, page_table,
            optional_operands, output, results, with_lse,
            {given, flags, softmax_scale, attn_logits_soft_cap, mask_value, sliding_window})) {
    return wrong_operands("pagefill_jax_attention_cuda");
  }
  if (call.status != nullptr && !is_in_place(results, with_lse ? 1 : 0, *call.status)) {
    return wrong_place("pagefill_jax_attention_cuda");
  }
  context.set_status(call.status);
  context.set_workspace((*workspace)->untyped_data(), (*workspace)->size_bytes());
  if (scratch != nullptr) {
    size_t size = 0;
    if (const pagefill_status status = call.workspace_size(context.get(), &size);
        status != PAGEFILL_OK) {
      return error_of(status);
    }
    if (size > 0) {
      // XLA refuses to be asked for more than 16, so what is missing is made up for here.
      size_t space = size + PAGEFILL_WORKSPACE_ALIGNMENT;
      std::optional<void*> memory = scratch->Allocate(space);
      if (!memory.has_value()) {
        return {ffi::ErrorCode::kResourceExhausted,
                "workspace: expected " + std::to_string(size) + " bytes of XLA, got none"};
      }
      context.set_workspace(std::align(PAGEFILL_WORKSPACE_ALIGNMENT, size, *memory, space), size);
    }
  }
  return error_of(call.run(context.get()));
}

constexpr auto in_result = [](void* stream, auto... arguments) {
  return on_cuda(stream, nullptr, arguments...);
};
constexpr auto in_scratch = [](void* stream, ffi::ScratchAllocator scratch, auto... arguments) {
  return on_cuda(stream, &scratch, arguments...);
};

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    pagefill_jax_attention_cuda, in_result,
    with_cuda_arguments(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<void*>>()),
    PAGEFILL_JAX_IN_COMMAND_BUFFERS);

// Not for command buffers: XLA gives scratch memory to others when the handler returns, and the graph that
// it captured would go on to use it.
XLA_FFI_DEFINE_HANDLER_SYMBOL(pagefill_jax_attention_scratch_cuda, in_scratch,
                              with_cuda_arguments(ffi::Ffi::Bind()
                                                      .Ctx<ffi::PlatformStream<void*>>()
                                                      .Ctx<ffi::ScratchAllocator>()));
#endif

}  // namespace pagefill::jax
