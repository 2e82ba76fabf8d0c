// pagefill_jax_copy_pages: copy_pages as an XLA FFI handler, for the CPU and for CUDA. The caches, their scales
// and the status are operands and results in one place (operand_output_aliases).
//
//   operands   copies, key_cache, value_cache; then those that `given` names
//   results    key_cache, value_cache; key_scale, value_scale, status where given
//   attributes given (bits of Given)
#include "jax_call.h"

namespace pagefill::jax {
namespace {

template <typename Context>
ffi::Error copy(Context&& context, ffi::AnyBuffer copies_buffer, ffi::AnyBuffer old_key_cache,
                ffi::AnyBuffer old_value_cache, ffi::RemainingArgs optional_operands,
                ffi::Result<ffi::AnyBuffer> key_buffer, ffi::Result<ffi::AnyBuffer> value_buffer,
                ffi::RemainingRets results, int32_t given) {
  const auto tensor = [&](const ffi::AnyBuffer& b) { return tensor_of(b, context.place()); };
  const pagefill_tensor copies = tensor(copies_buffer), key_cache = tensor(*key_buffer),
                        value_cache = tensor(*value_buffer);
  bool in_place = key_cache.data == old_key_cache.untyped_data() &&
                  value_cache.data == old_value_cache.untyped_data();

  pagefill_tensor key_scale, value_scale, status;
  OptionalOperands operands(optional_operands, given, context.place());
  pagefill_copy_options options = pagefill_copy_options_init();
  options.key_scale = operands.next(kKeyScale, key_scale);
  options.value_scale = operands.next(kValueScale, value_scale);
  options.copies = &copies;
  const pagefill_tensor* const given_status = operands.next(kStatus, status);
  context.set_status(given_status);
  if (!operands.complete()) return wrong_operands("pagefill_jax_copy_pages");

  size_t i = 0;
  for (const pagefill_tensor* written : {options.key_scale, options.value_scale, given_status}) {
    if (written != nullptr) in_place = is_in_place(results, i++, *written) && in_place;
  }
  if (!in_place) return wrong_place("pagefill_jax_copy_pages");

  return error_of(
      pagefill_copy_pages(nullptr, 0, &key_cache, &value_cache, &options, context.get()));
}

template <typename Binding>
auto with_arguments(Binding&& binding) {
  return with_results<2>(with_operands<3>(std::move(binding)).RemainingArgs())
      .RemainingRets()
      .template Attr<int32_t>("given");
}

constexpr auto on_cpu = [](ffi::ThreadPool pool, auto... arguments) {
  return copy(PoolContext(pool), arguments...);
};

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(pagefill_jax_copy_pages, on_cpu,
                              with_arguments(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()));

#if PAGEFILL_WITH_CUDA
namespace {
constexpr auto on_cuda = [](void* stream, auto... arguments) {
  return copy(StreamContext(stream), arguments...);
};
}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(pagefill_jax_copy_pages_cuda, on_cuda,
                              with_arguments(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<void*>>()),
                              PAGEFILL_JAX_IN_COMMAND_BUFFERS);
#endif

}  // namespace pagefill::jax
