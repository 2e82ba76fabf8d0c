// pagefill_jax_append_kv: append_kv as an XLA FFI handler for the CPU. The caches, and the scales that are
// chosen, are operands and results in one place (operand_output_aliases), so that slots without a new
// token keep what they hold.
//
//   operands   keys, values, key_cache, value_cache, query_starts, context_lens, page_table; then those
//              that `given` names
//   results    key_cache, value_cache; chosen_key_scale, chosen_value_scale where given
//   attributes given (bits of Given)
#include "jax_call.h"

namespace pagefill::jax {
namespace {

ffi::Error append(ffi::ThreadPool pool, ffi::AnyBuffer keys_buffer, ffi::AnyBuffer values_buffer,
                  ffi::AnyBuffer old_key_cache, ffi::AnyBuffer old_value_cache,
                  ffi::AnyBuffer starts_buffer, ffi::AnyBuffer lengths_buffer,
                  ffi::AnyBuffer table_buffer, ffi::RemainingArgs optional_operands,
                  ffi::Result<ffi::AnyBuffer> key_buffer, ffi::Result<ffi::AnyBuffer> value_buffer,
                  ffi::RemainingRets scale_buffers, int32_t given) {
  const pagefill_tensor keys = tensor_of(keys_buffer), values = tensor_of(values_buffer),
                        key_cache = tensor_of(*key_buffer), value_cache = tensor_of(*value_buffer),
                        query_starts = tensor_of(starts_buffer),
                        context_lens = tensor_of(lengths_buffer),
                        page_table = tensor_of(table_buffer);
  bool in_place = key_cache.data == old_key_cache.untyped_data() &&
                  value_cache.data == old_value_cache.untyped_data();

  pagefill_tensor kv_start, key_scale, value_scale, chosen_key_scale, chosen_value_scale;
  OptionalOperands operands(optional_operands, given);
  pagefill_append_options options = pagefill_append_options_init();
  options.kv_start = operands.next(kKvStart, kv_start);
  options.key_scale = operands.next(kKeyScale, key_scale);
  options.value_scale = operands.next(kValueScale, value_scale);
  options.chosen_key_scale = operands.next(kChosenKeyScale, chosen_key_scale);
  options.chosen_value_scale = operands.next(kChosenValueScale, chosen_value_scale);
  if (!operands.complete()) return wrong_operands("pagefill_jax_append_kv");

  size_t results = 0;
  for (const pagefill_tensor* chosen : {options.chosen_key_scale, options.chosen_value_scale}) {
    if (chosen == nullptr) continue;
    auto result = scale_buffers.get<ffi::AnyBuffer>(results++);
    in_place = in_place && result.has_value() && (*result)->untyped_data() == chosen->data;
  }
  if (!in_place) {
    return {
        ffi::ErrorCode::kInternal,
        "pagefill_jax_append_kv: expected XLA to place the written caches where the read ones are"};
  }

  const PoolContext context(pool);
  return error_of(pagefill_append_kv(&keys, &values, &key_cache, &value_cache, &query_starts,
                                     &context_lens, &page_table, &options, context.get()));
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(pagefill_jax_append_kv, append,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .RemainingRets()
                                  .Attr<int32_t>("given"));

}  // namespace pagefill::jax
