#include "jax_call.h"

#if PAGEFILL_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>

namespace pagefill::jax {
namespace {

int32_t dtype_of(ffi::DataType dtype) {
  switch (dtype) {
    case ffi::DataType::F32:
      return PAGEFILL_FLOAT32;
    case ffi::DataType::BF16:
      return PAGEFILL_BFLOAT16;
    case ffi::DataType::F16:
      return PAGEFILL_FLOAT16;
    case ffi::DataType::S32:
      return PAGEFILL_INT32;
    case ffi::DataType::F64:
      return PAGEFILL_FLOAT64;
    case ffi::DataType::S64:
      return PAGEFILL_INT64;
    case ffi::DataType::S8:
      return PAGEFILL_INT8;
    case ffi::DataType::F8E4M3FN:
      return PAGEFILL_FLOAT8_E4M3;
    case ffi::DataType::F8E5M2:
      return PAGEFILL_FLOAT8_E5M2;
    default:
      return -1;
  }
}

// One parallel_for. Helpers of the pool hold it too: one that starts late, when all is done and the
// caller gone, finds no task left and touches nothing else.
struct Run {
  void (*task)(void* argument, int64_t index);
  void* argument;
  int64_t num_tasks;
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> done{0};

  Run(int64_t tasks, void (*function)(void*, int64_t), void* with)
      : task(function), argument(with), num_tasks(tasks) {}

  void work() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) {
      task(argument, i);
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == num_tasks) done.notify_all();
    }
  }

  void wait() {
    for (int64_t n; (n = done.load(std::memory_order_acquire)) < num_tasks;) done.wait(n);
  }
};

void parallel_for(void* self, int64_t num_tasks, void (*task)(void* argument, int64_t index),
                  void* argument) {
  ffi::ThreadPool& pool = *static_cast<ffi::ThreadPool*>(self);
  const auto run = std::make_shared<Run>(num_tasks, task, argument);
  try {
    for (int64_t helper = 1; helper < num_tasks; ++helper) {
      pool.Schedule([run] { run->work(); });
    }
  } catch (...) {  // out of memory: those that were scheduled, and this thread, do all of it
  }
  run->work();
  run->wait();
}

}  // namespace

pagefill_tensor tensor_of(const ffi::AnyBuffer& buffer, Place place) {
  const auto shape = buffer.dimensions();
  pagefill_tensor tensor =
      pagefill_tensor_init(buffer.untyped_data(), dtype_of(buffer.element_type()),
                           static_cast<int32_t>(shape.size()), shape.begin());
  tensor.device_type = place.device_type;
  tensor.device_index = place.device_index;
  return tensor;
}

ffi::Error error_of(pagefill_status status) {
  ffi::ErrorCode code = ffi::ErrorCode::kInternal;
  switch (status) {
    case PAGEFILL_OK:
      return ffi::Error::Success();
    case PAGEFILL_INVALID_ARGUMENT:
      code = ffi::ErrorCode::kInvalidArgument;
      break;
    case PAGEFILL_UNSUPPORTED:
      code = ffi::ErrorCode::kUnimplemented;
      break;
    case PAGEFILL_RESOURCE_EXHAUSTED:
      code = ffi::ErrorCode::kResourceExhausted;
      break;
    case PAGEFILL_UNAVAILABLE:
      code = ffi::ErrorCode::kUnavailable;
      break;
    case PAGEFILL_CANCELLED:
      code = ffi::ErrorCode::kCancelled;
      break;
    case PAGEFILL_INTERNAL:
      break;
  }
  return {code, pagefill_last_error_message()};
}

PoolContext::PoolContext(ffi::ThreadPool& pool) {
  executor_.num_threads = static_cast<int32_t>(
      std::clamp<int64_t>(pool.num_threads(), 1, std::numeric_limits<int32_t>::max()));
  executor_.self = &pool;
  executor_.parallel_for = parallel_for;
  context_.executor = &executor_;
}

#if PAGEFILL_WITH_CUDA
StreamContext::StreamContext(void* stream) {
  place_.device_type = PAGEFILL_CUDA;
  // The FFI of the oldest JAX does not tell the device. A failure is the call's to find.
  if (cudaGetDevice(&place_.device_index) != cudaSuccess) place_.device_index = 0;
  context_.cuda_stream = stream;
}
#endif

}  // namespace pagefill::jax
