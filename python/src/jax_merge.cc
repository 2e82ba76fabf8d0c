// pagefill_jax_merge: merge_attention_states as an XLA FFI handler for the CPU.
//
//   operands   output_a, lse_a, output_b, lse_b
//   results    the merged output, the merged lse
#include "jax_call.h"

namespace pagefill::jax {
namespace {

ffi::Error merge(ffi::ThreadPool pool, ffi::AnyBuffer output_a_buffer, ffi::AnyBuffer lse_a_buffer,
                 ffi::AnyBuffer output_b_buffer, ffi::AnyBuffer lse_b_buffer,
                 ffi::Result<ffi::AnyBuffer> output_buffer,
                 ffi::Result<ffi::AnyBuffer> lse_buffer) {
  const pagefill_tensor output_a = tensor_of(output_a_buffer), lse_a = tensor_of(lse_a_buffer),
                        output_b = tensor_of(output_b_buffer), lse_b = tensor_of(lse_b_buffer),
                        output = tensor_of(*output_buffer), lse = tensor_of(*lse_buffer);
  const PoolContext context(pool);
  return error_of(pagefill_merge_attention_states(&output_a, &lse_a, &output_b, &lse_b, &output,
                                                  &lse, context.get()));
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(pagefill_jax_merge, merge,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

}  // namespace pagefill::jax
