// pagefill_jax_merge: merge_attention_states as an XLA FFI handler, for the CPU and for CUDA.
//
//   operands   output_a, lse_a, output_b, lse_b
//   results    the merged output, the merged lse
#include "jax_call.h"

namespace pagefill::jax {
namespace {

template <typename Context>
ffi::Error merge(const Context& context, ffi::AnyBuffer output_a_buffer,
                 ffi::AnyBuffer lse_a_buffer, ffi::AnyBuffer output_b_buffer,
                 ffi::AnyBuffer lse_b_buffer, ffi::Result<ffi::AnyBuffer> output_buffer,
                 ffi::Result<ffi::AnyBuffer> lse_buffer) {
  const auto tensor = [&](const ffi::AnyBuffer& b) { return tensor_of(b, context.place()); };
  const pagefill_tensor output_a = tensor(output_a_buffer), lse_a = tensor(lse_a_buffer),
                        output_b = tensor(output_b_buffer), lse_b = tensor(lse_b_buffer),
                        output = tensor(*output_buffer), lse = tensor(*lse_buffer);
  return error_of(pagefill_merge_attention_states(&output_a, &lse_a, &output_b, &lse_b, &output,
                                                  &lse, context.get()));
}

template <typename Binding>
auto with_states(Binding&& binding) {
  return with_results<2>(with_operands<4>(std::move(binding)));
}

constexpr auto on_cpu = [](ffi::ThreadPool pool, auto... buffers) {
  return merge(PoolContext(pool), buffers...);
};

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(pagefill_jax_merge, on_cpu,
                              with_states(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()));

#if PAGEFILL_WITH_CUDA
namespace {
constexpr auto on_cuda = [](void* stream, auto... buffers) {
  return merge(StreamContext(stream), buffers...);
};
}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(pagefill_jax_merge_cuda, on_cuda,
                              with_states(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<void*>>()),
                              PAGEFILL_JAX_IN_COMMAND_BUFFERS);
#endif

}  // namespace pagefill::jax
