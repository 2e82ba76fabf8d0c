// The operator: validate, plan, run.
#include "pagefill/attention.h"

#include <fmt/format.h>

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

Status check_workspace(std::span<std::byte> workspace, size_t size) {
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

Status attend(const TensorView& query, const TensorView& key_cache, const TensorView& value_cache,
              const Batch& batch, const AttentionOptions& options, const AttentionOutput& output,
              const Context& context, const BatchNames& names) try {
  const DefaultFloatMode float_mode;
  const Result<Problem> problem =
      validate(query, key_cache, value_cache, batch, options, output, names);
  if (!problem.ok()) return problem.status();

  Result<Selection> plan = select_backend(context);
  if (!plan.ok()) return plan.status();
  RunSettings& settings = plan->settings;
  const size_t size = plan->backend->workspace_size(*problem, settings);
  Workspace own;
  if (!context.workspace.empty()) {
    PAGEFILL_RETURN_IF_ERROR(check_workspace(context.workspace, size));
    settings.workspace = context.workspace.first(size);
  } else if (size > 0) {
    own.reset(new (std::align_val_t{kWorkspaceAlignment}) std::byte[size]);
    settings.workspace = {own.get(), size};
  }

  CallReport report{plan->backend->name(), "", settings.num_threads, size};
  Status status = plan->backend->run(*problem, settings, &report);
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
  const int32_t query_starts[] = {0, static_cast<int32_t>(query.shape[0])};
  TensorView page_table = page_indices;  // as the one row of a table
  page_table.rank = 2;
  page_table.shape = {1, page_indices.shape[0]};
  page_table.strides = {0, page_indices.strides[0]};
  return attend(query, key_cache, value_cache, {query_starts, context_len, page_table}, options,
                output, context, kSingleNames);
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
  const Result<Problem> problem =
      validate(query, key_cache, value_cache, {query_starts, context_lens, page_table}, options,
               output, kRaggedNames);
  if (!problem.ok()) return problem.status();
  const Result<Selection> plan = select_backend(context);
  if (!plan.ok()) return plan.status();
  return plan->backend->workspace_size(*problem, plan->settings);
}

}  // namespace pagefill
