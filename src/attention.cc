// The operator: validate, plan, run.
#include "pagefill/attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <new>

#include "backend.h"
#include "checks.h"
#include "float_mode.h"
#include "validate.h"

namespace pagefill {
namespace {

struct FreeAligned {
  void operator()(std::byte* p) const {
    ::operator delete[](p, std::align_val_t{kWorkspaceAlignment});
  }
};
using Workspace = std::unique_ptr<std::byte[], FreeAligned>;

Status check_workspace(std::span<std::byte> workspace, size_t size, Device device) {
  if (workspace.empty() && device.type != DeviceType::kCpu) {
    return Status(
        StatusCode::kResourceExhausted,
        fmt::format("workspace: expected {} bytes of memory of {}, where a call allocates "
                    "none, got none",
                    size, device_string(device)));
  }
  if (workspace.size() < size) {
    return Status(
        StatusCode::kResourceExhausted,
        fmt::format("workspace: expected at least {} bytes, got {}", size, workspace.size()));
  }
  if (reinterpret_cast<uintptr_t>(workspace.data()) % kWorkspaceAlignment != 0) {
    return invalid_argument(fmt::format("workspace: expected memory aligned to {} bytes, got {}",
                                        kWorkspaceAlignment, fmt::ptr(workspace.data())));
  }
  return {};
}

// The plan of a call on a CUDA device, without a 0 in it.
Result<CudaSettings> plan_cuda(const Problem& p, const Context& context, const BatchNames& names) {
  CudaSettings cuda = context.cuda;
  PAGEFILL_RETURN_IF_ERROR(
      check_cuda_settings(cuda, p.key_cache, names.total_tokens, names.max_pages));
  if (p.device.type == DeviceType::kCpu) return cuda;
  if (context.cancel != nullptr) {
    return Status(
        StatusCode::kUnsupported,
        fmt::format("cancel: expected none with memory of {}, where a call only enqueues, "
                    "got one",
                    device_string(p.device)));
  }
  PAGEFILL_RETURN_IF_ERROR(
      check_written({{"cuda.status", cuda.status}}, {{"query", p.query},
                                                     {"key_cache", p.key_cache},
                                                     {"value_cache", p.value_cache},
                                                     {"query_starts", p.query_starts},
                                                     {"context_lens", p.context_lens},
                                                     {"page_table", p.page_table},
                                                     {"output", p.output},
                                                     {"lse", p.lse}}));
  // A length is an int32, so that no more than 2^31 - 1 keys can be asked for.
  constexpr int64_t kMaxLength = std::numeric_limits<int32_t>::max();
  const int64_t total_tokens = p.query.shape[0], max_pages = p.page_table.shape[1];
  const int64_t capacity =
      max_pages > kMaxLength / p.page_size ? kMaxLength : max_pages * p.page_size;
  const auto planned = [](int64_t asked, int64_t all) {
    return asked == 0 ? all : std::min(asked, all);
  };
  cuda.max_chunk_size = planned(cuda.max_chunk_size, total_tokens);
  cuda.max_context_len = planned(cuda.max_context_len, capacity);
  return cuda;
}

// Validated and planned: what is left is to run it.
struct Call {
  Problem problem;
  Selection plan;
};

Result<Call> prepare(const TensorView& query, const TensorView& key_cache,
                     const TensorView& value_cache, const Batch& batch,
                     const AttentionOptions& options, const AttentionOutput& output,
                     const Context& context, const BatchNames& names) {
  Result<Problem> problem = validate(query, key_cache, value_cache, batch, options, output, names);
  if (!problem.ok()) return problem.status();
  Result<Selection> plan = select_backend(context, problem->device.type);
  if (!plan.ok()) return plan.status();
  Result<CudaSettings> cuda = plan_cuda(*problem, context, names);
  if (!cuda.ok()) return cuda.status();
  plan->settings.cuda = *cuda;
  return Call{std::move(*problem), std::move(*plan)};
}

Status attend(const TensorView& query, const TensorView& key_cache, const TensorView& value_cache,
              const Batch& batch, const AttentionOptions& options, const AttentionOutput& output,
              const Context& context, const BatchNames& names) try {
  const DefaultFloatMode float_mode;
  Result<Call> call =
      prepare(query, key_cache, value_cache, batch, options, output, context, names);
  if (!call.ok()) return call.status();
  const auto& [problem, plan] = *call;
  RunSettings settings = plan.settings;
  const Result<size_t> needed = plan.backend->workspace_size(problem, settings);
  if (!needed.ok()) return needed.status();
  const size_t size = *needed;
  Workspace own;
  if (!context.workspace.empty() || (size > 0 && problem.device.type != DeviceType::kCpu)) {
    PAGEFILL_RETURN_IF_ERROR(check_workspace(context.workspace, size, problem.device));
    settings.workspace = context.workspace.first(size);
  } else if (size > 0) {
    own.reset(new (std::align_val_t{kWorkspaceAlignment}) std::byte[size]);
    settings.workspace = {own.get(), size};
  }

  CallReport report{plan.backend->name(), "", settings.num_threads, size};
  Status status = plan.backend->run(problem, settings, &report);
  if (!status.ok()) return status;
  if (settings.cancellation.requested()) {
    return Status(StatusCode::kCancelled,
                  "cancel: expected 0 until the call is done, got a request");
  }
  if (context.report != nullptr) *context.report = report;
  return {};
} catch (const std::bad_alloc&) {
  return Status(StatusCode::kResourceExhausted, "workspace: out of memory");
}

}  // namespace

Status prefill_page_attention(const TensorView& query, const TensorView& key_cache,
                              const TensorView& value_cache, const TensorView& context_len,
                              const TensorView& page_indices, const AttentionOptions& options,
                              const AttentionOutput& output, const Context& context) {
  PAGEFILL_RETURN_IF_ERROR(check_tensor("context_len", context_len, {{"1", 1}}));
  PAGEFILL_RETURN_IF_ERROR(check_tensor("page_indices", page_indices, {{"num_pages"}}));
  if (query.rank > 0 && query.shape[0] > std::numeric_limits<int32_t>::max()) {
    return invalid_argument(
        fmt::format("query: expected chunk_size below 2^31, got {}", query.shape[0]));
  }
  TensorView page_table = page_indices;  // as the one row of a table
  page_table.rank = 2;
  page_table.shape = {1, page_indices.shape[0]};
  page_table.strides = {0, page_indices.strides[0]};
  return attend(query, key_cache, value_cache, {{}, context_len, page_table}, options, output,
                context, kSingleNames);
}

Status ragged_page_attention(const TensorView& query, const TensorView& key_cache,
                             const TensorView& value_cache, const TensorView& query_starts,
                             const TensorView& context_lens, const TensorView& page_table,
                             const AttentionOptions& options, const AttentionOutput& output,
                             const Context& context) {
  return attend(query, key_cache, value_cache, {query_starts, context_lens, page_table}, options,
                output, context, kRaggedNames);
}

Result<size_t> attention_workspace_size(
    const TensorView& query, const TensorView& key_cache, const TensorView& value_cache,
    const TensorView& query_starts, const TensorView& context_lens, const TensorView& page_table,
    const AttentionOptions& options, const AttentionOutput& output, const Context& context) {
  const Result<Call> call =
      prepare(query, key_cache, value_cache, {query_starts, context_lens, page_table}, options,
              output, context, kRaggedNames);
  if (!call.ok()) return call.status();
  return call->plan.backend->workspace_size(call->problem, call->plan.settings);
}

}  // namespace pagefill
