// pagefill_jax_append_kv: append_kv as an XLA FFI handler, for the CPU and for CUDA. The caches, the scales that are
// chosen and the status are operands and results in one place (operand_output_aliases), so that slots without a
// new token keep what they hold.
//
//   operands   keys, values, key_cache, value_cache, query_starts, context_lens, page_table; then those
//              that `given` names
//   results    key_cache, value_cache; chosen_key_scale, chosen_value_scale, status where given
//   attributes given (bits of Given)
#include "jax_call.h"

namespace pagefill::jax {
namespace {

template <typename Context>
ffi::Error append(Context&& context, ffi::AnyBuffer keys_buffer, ffi::AnyBuffer values_buffer,
                  ffi::AnyBuffer old_key_cache, ffi::AnyBuffer old_value_cache,
                  ffi::AnyBuffer starts_buffer, ffi::AnyBuffer lengths_buffer,
                  ffi::AnyBuffer table_buffer, ffi::RemainingArgs optional_operands,
                  ffi::Result<ffi::AnyBuffer> key_buffer, ffi::Result<ffi::AnyBuffer> value_buffer,
                  ffi::RemainingRets results, int32_t given) {
  const auto tensor = [&](const ffi::AnyBuffer& b) { return tensor_of(b, context.place()); };
  const pagefill_tensor keys = tensor(keys_buffer), values = tensor(values_buffer),
                        key_cache = tensor(*key_buffer), value_cache = tensor(*value_buffer),
                        query_starts = tensor(starts_buffer), context_lens = tensor(lengths_buffer),
                        page_table = tensor(table_buffer);
  bool in_place = key_cache.data == old_key_cache.untyped_data() &&
                  value_cache.data == old_value_cache.untyped_data();

  pagefill_tensor kv_start, key_scale, value_scale, chosen_key_scale, chosen_value_scale, status;
  OptionalOperands operands(optional_operands, given, context.place());
  pagefill_append_options options = pagefill_append_options_init();
  options.kv_start = operands.next(kKvStart, kv_start);
  options.key_scale = operands.next(kKeyScale, key_scale);
  options.value_scale = operands.next(kValueScale, value_scale);
  options.chosen_key_scale = operands.next(kChosenKeyScale, chosen_key_scale);
  options.chosen_value_scale = operands.next(kChosenValueScale, chosen_value_scale);
  const pagefill_tensor* const given_status = operands.next(kStatus, status);
  context.set_status(given_status);
  if (!operands.complete()) return wrong_operands("pagefill_jax_append_kv");

  size_t i = 0;
  for (const pagefill_tensor* written :
       {options.chosen_key_scale, options.chosen_value_scale, given_status}) {
    if (written != nullptr) in_place = is_in_place(results, i++, *written) && in_place;
  }
  if (!in_place) return wrong_place("pagefill_jax_append_kv");

  return error_of(pagefill_append_kv(&keys, &values, &key_cache, &value_cache, &query_starts,
                                     &context_lens, &page_table, &options, context.get()));
}

template <typename Binding>
auto with_arguments(Binding&& binding) {
  return with_results<2>(with_operands<7>(std::move(binding)).RemainingArgs())
      .RemainingRets()
      .template Attr<int32_t>("given");
}

constexpr auto on_cpu = [](ffi::ThreadPool pool, auto... arguments) {
  return append(PoolContext(pool), arguments...);
};

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(pagefill_jax_append_kv, on_cpu,
                              with_arguments(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()));

#if PAGEFILL_WITH_CUDA
namespace {
constexpr auto on_cuda = [](void* stream, auto... arguments) {
  return append(StreamContext(stream), arguments...);
};
}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(pagefill_jax_append_kv_cuda, on_cuda,
                              with_arguments(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<void*>>()),
                              PAGEFILL_JAX_IN_COMMAND_BUFFERS);
#endif

}  // namespace pagefill::jax
