// pagefill_jax_attention: ragged_page_attention, or prefill_page_attention where query_starts is not
// given, as an XLA FFI handler for the CPU.
//
//   operands   query, key_cache, value_cache, context_lens, page_table; then those that `given` names
//   results    output; lse where there is a second one
//   attributes given (bits of Given); flags (PAGEFILL_HAS_...) and the options that they name
#include <algorithm>
#include <cstring>
#include <limits>

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

ffi::Error attention(ffi::ThreadPool pool, ffi::AnyBuffer query_buffer, ffi::AnyBuffer key_buffer,
                     ffi::AnyBuffer value_buffer, ffi::AnyBuffer lengths_buffer,
                     ffi::AnyBuffer table_buffer, ffi::RemainingArgs optional_operands,
                     ffi::Result<ffi::AnyBuffer> output_buffer, ffi::RemainingRets lse_buffer,
                     int32_t given, int32_t flags, float softmax_scale, float attn_logits_soft_cap,
                     float mask_value, int64_t sliding_window) {
  const pagefill_tensor query = tensor_of(query_buffer), key_cache = tensor_of(key_buffer),
                        value_cache = tensor_of(value_buffer),
                        context_lens = tensor_of(lengths_buffer),
                        page_table = tensor_of(table_buffer), output = tensor_of(*output_buffer);
  pagefill_tensor starts_memory, sinks, kv_start, key_scale, value_scale, lse_memory;
  OptionalOperands operands(optional_operands, given);
  const pagefill_tensor* const query_starts = operands.next(kQueryStarts, starts_memory);

  pagefill_attention_options options = pagefill_attention_options_init();
  options.flags = static_cast<uint32_t>(flags);
  options.softmax_scale = softmax_scale;
  options.attn_logits_soft_cap = attn_logits_soft_cap;
  options.mask_value = mask_value;
  options.sliding_window = sliding_window;
  options.sinks = operands.next(kSinks, sinks);
  options.kv_start = operands.next(kKvStart, kv_start);
  options.key_scale = operands.next(kKeyScale, key_scale);
  options.value_scale = operands.next(kValueScale, value_scale);

  const pagefill_tensor* lse = nullptr;
  if (lse_buffer.size() > 0) {
    auto buffer = lse_buffer.get<ffi::AnyBuffer>(0);
    if (!buffer.has_value()) return wrong_operands("pagefill_jax_attention");
    lse_memory = tensor_of(**buffer);
    lse = &lse_memory;
  }
  if (!operands.complete()) return wrong_operands("pagefill_jax_attention");

  const PoolContext context(pool);
  if (query_starts == nullptr) {
    return error_of(pagefill_prefill_page_attention(&query, &key_cache, &value_cache, &context_lens,
                                                    &page_table, &options, &output, lse,
                                                    context.get()));
  }
  const pagefill_status status =
      pagefill_ragged_page_attention(&query, &key_cache, &value_cache, query_starts, &context_lens,
                                     &page_table, &options, &output, lse, context.get());
  if (status == PAGEFILL_OK) fill_padding(*query_starts, output, lse);
  return error_of(status);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(pagefill_jax_attention, attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .RemainingRets()
                                  .Attr<int32_t>("given")
                                  .Attr<int32_t>("flags")
                                  .Attr<float>("softmax_scale")
                                  .Attr<float>("attn_logits_soft_cap")
                                  .Attr<float>("mask_value")
                                  .Attr<int64_t>("sliding_window"));

}  // namespace pagefill::jax
