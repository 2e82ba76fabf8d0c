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
#include <utility>

namespace pagefill::jax {

// What pagefill.jax looks up and registers with XLA.
extern "C" {
PAGEFILL_EXPORT XLA_FFI_Error* pagefill_jax_attention(XLA_FFI_CallFrame* call_frame);
PAGEFILL_EXPORT XLA_FFI_Error* pagefill_jax_append_kv(XLA_FFI_CallFrame* call_frame);
PAGEFILL_EXPORT XLA_FFI_Error* pagefill_jax_copy_pages(XLA_FFI_CallFrame* call_frame);
PAGEFILL_EXPORT XLA_FFI_Error* pagefill_jax_merge(XLA_FFI_CallFrame* call_frame);
#if PAGEFILL_WITH_CUDA
PAGEFILL_EXPORT XLA_FFI_Error* pagefill_jax_attention_cuda(XLA_FFI_CallFrame* call_frame);
PAGEFILL_EXPORT XLA_FFI_Error* pagefill_jax_attention_scratch_cuda(XLA_FFI_CallFrame* call_frame);
PAGEFILL_EXPORT XLA_FFI_Error* pagefill_jax_append_kv_cuda(XLA_FFI_CallFrame* call_frame);
PAGEFILL_EXPORT XLA_FFI_Error* pagefill_jax_copy_pages_cuda(XLA_FFI_CallFrame* call_frame);
PAGEFILL_EXPORT XLA_FFI_Error* pagefill_jax_merge_cuda(XLA_FFI_CallFrame* call_frame);
#endif
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
  kStatus = 128,
};

// Whose memory the buffers of a call are.
struct Place {
  int32_t device_type = PAGEFILL_CPU;
  int32_t device_index = 0;
};

// XLA's buffers are row-major without gaps, which the lowering asks for. What pagefill has no name for, a
// dtype or a rank above 4, is refused by the call.
pagefill_tensor tensor_of(const ffi::AnyBuffer& buffer, Place place);

ffi::Error error_of(pagefill_status status);

// Hands out the optional operands, one after another.
class OptionalOperands {
 public:
  OptionalOperands(const ffi::RemainingArgs& operands, int32_t given, Place place)
      : operands_(operands), given_(given), place_(place) {}

  // Fills in `tensor` and returns it where the operand is given, else null.
  const pagefill_tensor* next(Given which, pagefill_tensor& tensor) {
    if ((given_ & which) == 0) return nullptr;
    const ffi::ErrorOr<ffi::AnyBuffer> buffer = operands_.get<ffi::AnyBuffer>(taken_++);
    if (!buffer.has_value()) {
      complete_ = false;
      return nullptr;
    }
    tensor = tensor_of(*buffer, place_);
    return &tensor;
  }

  // False where an operand was missing, or others are left than `num_left`.
  bool complete(size_t num_left = 0) const {
    return complete_ && taken_ + num_left == operands_.size();
  }

 private:
  const ffi::RemainingArgs& operands_;
  int32_t given_;
  Place place_;
  size_t taken_ = 0;
  bool complete_ = true;
};

inline ffi::Error wrong_operands(const char* target) {
  return {ffi::ErrorCode::kInternal, std::string(target) + ": operands or results are missing"};
}

// The binding with that many operands more, or results, which may be of any dtype and shape.
template <int kNum, typename Binding>
auto with_operands(Binding&& binding) {
  auto more = [&] { return std::move(binding).template Arg<ffi::AnyBuffer>(); };
  if constexpr (kNum == 1) {
    return more();
  } else {
    return with_operands<kNum - 1>(more());
  }
}
template <int kNum, typename Binding>
auto with_results(Binding&& binding) {
  auto more = [&] { return std::move(binding).template Ret<ffi::AnyBuffer>(); };
  if constexpr (kNum == 1) {
    return more();
  } else {
    return with_results<kNum - 1>(more());
  }
}

// Whether result i is where the operand is, as the lowering asks of those that are written.
inline bool is_in_place(const ffi::RemainingRets& results, size_t i,
                        const pagefill_tensor& operand) {
  auto result = results.get<ffi::AnyBuffer>(i);
  return result.has_value() && (*result)->untyped_data() == operand.data;
}

inline ffi::Error wrong_place(const char* target) {
  return {ffi::ErrorCode::kInternal,
          std::string(target) + ": expected XLA to place what is written where the read ones are"};
}

// How and where one call runs.
class CallContext {
 public:
  CallContext() = default;
  CallContext(const CallContext&) = delete;
  CallContext& operator=(const CallContext&) = delete;

  const pagefill_context* get() const { return &context_; }
  void set_status(const pagefill_tensor* status) { context_.cuda_status = status; }

 protected:
  pagefill_context context_ = pagefill_context_init();
};

// XLA's thread pool for one call. The calling thread, which may be one of the pool's, works as well and
// waits only for tasks that run already, so that a full pool delays nothing and locks nothing.
class PoolContext : public CallContext {
 public:
  explicit PoolContext(ffi::ThreadPool& pool);
  Place place() const { return {}; }

 private:
  pagefill_executor executor_ = pagefill_executor_init();
};

#if PAGEFILL_WITH_CUDA

// XLA's stream for one call, on the device that XLA has made current.
class StreamContext : public CallContext {
 public:
  explicit StreamContext(void* stream);
  Place place() const { return place_; }
  void set_maxima(int64_t max_chunk_size, int64_t max_context_len) {
    context_.cuda_max_chunk_size = max_chunk_size;
    context_.cuda_max_context_len = max_context_len;
  }
  void set_workspace(void* data, size_t size) {
    context_.workspace = size == 0 ? nullptr : data;
    context_.workspace_size = size;
  }

 private:
  Place place_;
};

// All that pagefill does on a stream can be captured: XLA may put it into a command buffer.
#define PAGEFILL_JAX_IN_COMMAND_BUFFERS \
  { ffi::Traits::kCmdBufferCompatible }

#endif

}  // namespace pagefill::jax
