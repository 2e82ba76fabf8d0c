// What the XLA FFI handlers share: XLA's buffers, numbers and threads as pagefill's C interface takes
// them, and its statuses as XLA's errors.
//
// The headers are those of the oldest jaxlib that pagefill.jax runs with: XLA takes handlers that were
// built with an older version of its FFI, and refuses newer ones.
#pragma once

#include <pagefill/pagefill.h>
#include <xla/ffi/api/ffi.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace pagefill::jax {

// What pagefill.jax looks up and registers with XLA.
extern "C" {
PAGEFILL_EXPORT XLA_FFI_Error* pagefill_jax_attention(XLA_FFI_CallFrame* call_frame);
PAGEFILL_EXPORT XLA_FFI_Error* pagefill_jax_append_kv(XLA_FFI_CallFrame* call_frame);
PAGEFILL_EXPORT XLA_FFI_Error* pagefill_jax_merge(XLA_FFI_CallFrame* call_frame);
}

namespace ffi = xla::ffi;

// Bits of the attribute `given`: which of a call's optional operands there are. They stand in this order.
enum Given : int32_t {
  kQueryStarts = 1,
  kSinks = 2,
  kKvStart = 4,
  kKeyScale = 8,
  kValueScale = 16,
  kChosenKeyScale = 32,
  kChosenValueScale = 64,
};

// XLA's buffers are row-major without gaps on the CPU. What pagefill has no name for, a dtype or a rank
// above 4, is refused by the call.
pagefill_tensor tensor_of(const ffi::AnyBuffer& buffer);

ffi::Error error_of(pagefill_status status);

// Hands out the optional operands, one after another.
class OptionalOperands {
 public:
  OptionalOperands(const ffi::RemainingArgs& operands, int32_t given)
      : operands_(operands), given_(given) {}

  // Fills in `tensor` and returns it where the operand is given, else null.
  const pagefill_tensor* next(Given which, pagefill_tensor& tensor) {
    if ((given_ & which) == 0) return nullptr;
    const ffi::ErrorOr<ffi::AnyBuffer> buffer = operands_.get<ffi::AnyBuffer>(taken_++);
    if (!buffer.has_value()) {
      complete_ = false;
      return nullptr;
    }
    tensor = tensor_of(*buffer);
    return &tensor;
  }

  // False where an operand was missing, or one is left.
  bool complete() const { return complete_ && taken_ == operands_.size(); }

 private:
  const ffi::RemainingArgs& operands_;
  int32_t given_;
  size_t taken_ = 0;
  bool complete_ = true;
};

inline ffi::Error wrong_operands(const char* target) {
  return {ffi::ErrorCode::kInternal, std::string(target) + ": operands or results are missing"};
}

// XLA's thread pool for one call. The calling thread, which may be one of the pool's, works as well and
// waits only for tasks that run already, so that a full pool delays nothing and locks nothing.
class PoolContext {
 public:
  explicit PoolContext(ffi::ThreadPool& pool);
  PoolContext(const PoolContext&) = delete;
  PoolContext& operator=(const PoolContext&) = delete;

  const pagefill_context* get() const { return &context_; }

 private:
  pagefill_executor executor_ = pagefill_executor_init();
  pagefill_context context_ = pagefill_context_init();
};

}  // namespace pagefill::jax
