// The structs of the C interface as those of the C++ interface, one conversion each. Rules about the
// values are the C++ library's; here is only what C++ cannot express.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <initializer_list>
#include <optional>
#include <string_view>

#include "checks.h"
#include "pagefill/attention.h"
#include "pagefill/executor.h"
#include "pagefill/kv_cache.h"
#include "pagefill/pagefill.h"

namespace pagefill {

static_assert(PAGEFILL_OK == static_cast<int>(StatusCode::kOk));
static_assert(PAGEFILL_INVALID_ARGUMENT == static_cast<int>(StatusCode::kInvalidArgument));
static_assert(PAGEFILL_UNSUPPORTED == static_cast<int>(StatusCode::kUnsupported));
static_assert(PAGEFILL_RESOURCE_EXHAUSTED == static_cast<int>(StatusCode::kResourceExhausted));
static_assert(PAGEFILL_UNAVAILABLE == static_cast<int>(StatusCode::kUnavailable));
static_assert(PAGEFILL_INTERNAL == static_cast<int>(StatusCode::kInternal));
static_assert(PAGEFILL_CANCELLED == static_cast<int>(StatusCode::kCancelled));
static_assert(PAGEFILL_FLOAT32 == static_cast<int>(DType::kFloat32));
static_assert(PAGEFILL_BFLOAT16 == static_cast<int>(DType::kBFloat16));
static_assert(PAGEFILL_FLOAT16 == static_cast<int>(DType::kFloat16));
static_assert(PAGEFILL_INT32 == static_cast<int>(DType::kInt32));
static_assert(PAGEFILL_FLOAT64 == static_cast<int>(DType::kFloat64));
static_assert(PAGEFILL_INT64 == static_cast<int>(DType::kInt64));
static_assert(PAGEFILL_INT8 == static_cast<int>(DType::kInt8));
static_assert(PAGEFILL_FLOAT8_E4M3 == static_cast<int>(DType::kFloat8E4M3));
static_assert(PAGEFILL_FLOAT8_E5M2 == static_cast<int>(DType::kFloat8E5M2));
static_assert(PAGEFILL_CPU == static_cast<int>(DeviceType::kCpu));
static_assert(PAGEFILL_CUDA == static_cast<int>(DeviceType::kCuda));
static_assert(PAGEFILL_CUDA_OK == static_cast<int>(CudaStatusCode::kOk));
static_assert(PAGEFILL_CUDA_QUERY_STARTS == static_cast<int>(CudaStatusCode::kQueryStarts));
static_assert(PAGEFILL_CUDA_CONTEXT_LENS == static_cast<int>(CudaStatusCode::kContextLens));
static_assert(PAGEFILL_CUDA_KV_START == static_cast<int>(CudaStatusCode::kKvStart));
static_assert(PAGEFILL_CUDA_PAGE_TABLE == static_cast<int>(CudaStatusCode::kPageTable));
static_assert(PAGEFILL_CUDA_CHUNK_SIZE == static_cast<int>(CudaStatusCode::kChunkSize));
static_assert(PAGEFILL_CUDA_COPIES == static_cast<int>(CudaStatusCode::kCopies));
static_assert(PAGEFILL_MAX_RANK == kMaxRank);
static_assert(PAGEFILL_WORKSPACE_ALIGNMENT == kWorkspaceAlignment);

// The sizes of structs before they grew.
inline constexpr size_t kContextWithoutCancel = offsetof(pagefill_context, cancel);
inline constexpr size_t kContextWithoutCuda = offsetof(pagefill_context, cuda_stream);
inline constexpr size_t kFirstBackendInfoSize = offsetof(pagefill_backend_info, memory);
inline constexpr size_t kFirstCopyOptionsSize = offsetof(pagefill_copy_options, copies);

inline constexpr auto kLastDType = static_cast<int32_t>(DType::kFloat8E5M2);

// Threads that were handed over as a C function.
class CExecutor final : public Executor {
 public:
  explicit CExecutor(const pagefill_executor& executor) : executor_(executor) {}
  int num_threads() const override { return executor_.num_threads; }
  void parallel_for(int64_t num_tasks, void (*task)(void* argument, int64_t index),
                    void* argument) override {
    executor_.parallel_for(executor_.self, num_tasks, task, argument);
  }

 private:
  pagefill_executor executor_;
};

// A context with what its pointers lead to.
struct ConvertedContext {
  Context context;
  std::optional<CExecutor> executor;
  CallReport report;
  pagefill_call_report* caller_report = nullptr;

  void hand_out_report() const {
    if (caller_report == nullptr) return;
    caller_report->backend = report.backend;
    caller_report->target = report.target;
    caller_report->num_threads = report.num_threads;
    caller_report->workspace_bytes = report.workspace_bytes;
  }
};

// Converts the arguments of one call and keeps the first error.
class Arguments {
 public:
  const Status& status() const { return status_; }
  bool ok() const { return status_.ok(); }

  // Not null.
  template <typename T>
  bool pointer(std::string_view name, T* address) {
    if (address == nullptr) fail(name, "a pointer", "null");
    return address != nullptr;
  }

  // Not null, and of a size that this library knows: that of today, or one that it once had.
  template <typename T>
  bool sized(std::string_view name, const T* address,
             std::initializer_list<size_t> earlier_sizes = {}) {
    if (!pointer(name, address)) return false;
    const size_t size = address->struct_size;
    const bool known = size == sizeof(T) || std::find(earlier_sizes.begin(), earlier_sizes.end(),
                                                      size) != earlier_sizes.end();
    if (!known) fail(fmt::format("{}.struct_size", name), sizeof(T), size);
    return known;
  }

  TensorView tensor(std::string_view name, const pagefill_tensor* tensor) {
    return mutable_tensor(name, tensor);
  }

  // Null is a view that is not given.
  TensorView optional_tensor(std::string_view name, const pagefill_tensor* tensor) {
    return mutable_optional_tensor(name, tensor);
  }

  MutableTensorView mutable_optional_tensor(std::string_view name, const pagefill_tensor* tensor) {
    if (tensor == nullptr) return {};
    const MutableTensorView view = mutable_tensor(name, tensor);
    if (!view.given()) fail(name, "null or a tensor", "a tensor of rank 0 without data");
    return view;
  }

  MutableTensorView mutable_tensor(std::string_view name, const pagefill_tensor* tensor) {
    MutableTensorView view;
    if (!sized(name, tensor)) return view;
    if (tensor->dtype < 0 || tensor->dtype > kLastDType) {
      fail(fmt::format("{}.dtype", name), fmt::format("0 to {}", kLastDType), tensor->dtype);
    }
    if (tensor->device_type != PAGEFILL_CPU && tensor->device_type != PAGEFILL_CUDA) {
      fail(fmt::format("{}.device_type", name), "0 (CPU) or 1 (CUDA)", tensor->device_type);
    }
    view.data = tensor->data;
    view.dtype = static_cast<DType>(tensor->dtype);
    view.rank = tensor->rank;
    view.shape = std::to_array(tensor->shape);
    view.strides = std::to_array(tensor->strides);
    view.device = {static_cast<DeviceType>(tensor->device_type), tensor->device_index};
    return view;
  }

  // Null is the default.
  AttentionOptions options(const pagefill_attention_options* options) {
    AttentionOptions converted;
    if (options == nullptr || !sized("options", options)) return converted;
    constexpr uint32_t kKnown = PAGEFILL_HAS_SOFTMAX_SCALE | PAGEFILL_HAS_ATTN_LOGITS_SOFT_CAP |
                                PAGEFILL_HAS_SLIDING_WINDOW | PAGEFILL_HAS_MASK_VALUE;
    if ((options->flags & ~kKnown) != 0) {
      fail("options.flags", fmt::format("bits of {:#x}", kKnown),
           fmt::format("{:#x}", options->flags));
    }
    const auto number = [&](uint32_t flag, std::string_view name, auto value, auto& target) {
      if ((options->flags & flag) != 0) {
        target = value;
      } else if (value != 0) {
        fail(fmt::format("options.{}", name), "0 where its bit of flags is not set", value);
      }
    };
    number(PAGEFILL_HAS_SOFTMAX_SCALE, "softmax_scale", options->softmax_scale,
           converted.softmax_scale);
    number(PAGEFILL_HAS_ATTN_LOGITS_SOFT_CAP, "attn_logits_soft_cap", options->attn_logits_soft_cap,
           converted.attn_logits_soft_cap);
    number(PAGEFILL_HAS_SLIDING_WINDOW, "sliding_window", options->sliding_window,
           converted.sliding_window);
    number(PAGEFILL_HAS_MASK_VALUE, "mask_value", options->mask_value, converted.mask_value);
    converted.sinks = optional_tensor("sinks", options->sinks);
    converted.kv_start = optional_tensor("kv_start", options->kv_start);
    converted.key_scale = optional_tensor("key_scale", options->key_scale);
    converted.value_scale = optional_tensor("value_scale", options->value_scale);
    return converted;
  }

  // Null is the default.
  AppendOptions append_options(const pagefill_append_options* options) {
    if (options == nullptr || !sized("options", options)) return {};
    return {optional_tensor("kv_start", options->kv_start),
            optional_tensor("key_scale", options->key_scale),
            optional_tensor("value_scale", options->value_scale),
            mutable_optional_tensor("chosen_key_scale", options->chosen_key_scale),
            mutable_optional_tensor("chosen_value_scale", options->chosen_value_scale)};
  }

  // Null is the default.
  CopyOptions copy_options(const pagefill_copy_options* options) {
    if (options == nullptr || !sized("options", options, {kFirstCopyOptionsSize})) return {};
    const bool is_first = options->struct_size == kFirstCopyOptionsSize;
    return {mutable_optional_tensor("key_scale", options->key_scale),
            mutable_optional_tensor("value_scale", options->value_scale),
            is_first ? TensorView() : optional_tensor("copies", options->copies)};
  }

  // Null is the default. `converted` stays where it is as long as it is used.
  void context(const pagefill_context* context, ConvertedContext& converted) {
    if (context == nullptr ||
        !sized("context", context, {kContextWithoutCancel, kContextWithoutCuda}))
      return;
    if (context->struct_size != kContextWithoutCancel && context->cancel != nullptr) {
      // A plain int32 for C; C++ reads it as what it is, written by another thread.
      using Flag = std::atomic<int32_t>;
      static_assert(sizeof(Flag) == sizeof(int32_t) && Flag::is_always_lock_free);
      converted.context.cancel = reinterpret_cast<const Flag*>(context->cancel);
    }
    if (context->backend != nullptr) converted.context.backend = context->backend;
    if (context->cpu_target != nullptr) converted.context.cpu_target = context->cpu_target;
    converted.context.num_threads = context->num_threads;
    if (context->executor != nullptr && sized("executor", context->executor) &&
        pointer("executor.parallel_for", context->executor->parallel_for)) {
      converted.context.executor = &converted.executor.emplace(*context->executor);
    }
    if ((context->workspace == nullptr) != (context->workspace_size == 0)) {
      fail("workspace", "memory and its size, or null and 0",
           fmt::format("{} and {}", fmt::ptr(context->workspace), context->workspace_size));
    }
    converted.context.workspace = {static_cast<std::byte*>(context->workspace),
                                   context->workspace_size};
    if (context->report != nullptr && sized("report", context->report)) {
      converted.caller_report = context->report;
      converted.context.report = &converted.report;
    }
    if (context->struct_size != sizeof *context) return;
    converted.context.cuda = {context->cuda_stream, context->cuda_max_chunk_size,
                              context->cuda_max_context_len,
                              mutable_optional_tensor("cuda_status", context->cuda_status)};
  }

 private:
  template <typename Expected, typename Got>
  void fail(std::string_view name, const Expected& expected, const Got& got) {
    if (!status_.ok()) return;
    status_ = invalid_argument(fmt::format("{}: expected {}, got {}", name, expected, got));
  }

  Status status_;
};

}  // namespace pagefill
