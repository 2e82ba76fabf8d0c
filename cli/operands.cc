#include "operands.h"

#include <fmt/format.h>

#include <utility>

namespace pagefill::cli {
namespace {

Status error_of(const std::array<int32_t, 4>& reported) {
  const auto [code, sequence, entry, value] = reported;
  const auto error = [](std::string message) {
    return Status(StatusCode::kInvalidArgument, std::move(message));
  };
  switch (static_cast<CudaStatusCode>(code)) {
    case CudaStatusCode::kOk:
      return {};
    case CudaStatusCode::kQueryStarts:
      return error(
          fmt::format("query_starts: expected entries that begin with 0, never decrease "
                      "and stay within total_tokens, got {} in entry {}",
                      value, entry));
    case CudaStatusCode::kContextLens:
      return error(
          fmt::format("context_lens: expected lengths from 0 to what page_table has room "
                      "for, got {} in sequence {}",
                      value, sequence));
    case CudaStatusCode::kKvStart:
      return error(
          fmt::format("kv_start: expected positions >= 0, got {} in sequence {}", value, sequence));
    case CudaStatusCode::kPageTable:
      return error(
          fmt::format("page_table: expected pages of the cache where a visible key lies, "
                      "got {} in entry {} of sequence {}",
                      value, entry, sequence));
    case CudaStatusCode::kChunkSize:
      return error(
          fmt::format("query_starts: expected at most max_chunk_size rows, got {} in "
                      "sequence {}",
                      value, sequence));
    case CudaStatusCode::kCopies:
      return error(fmt::format("copies: expected pages and slots of the cache, got {} in copy {}",
                               value, sequence));
  }
  return Status(StatusCode::kInternal, fmt::format("the device reported code {}", code));
}

}  // namespace

size_t span_bytes(const TensorView& view) {
  int64_t last = 0;
  for (int i = 0; i < view.rank && i < kMaxRank; ++i) {
    if (view.shape[i] <= 0) return 0;
    last += (view.shape[i] - 1) * view.strides[i];
  }
  return static_cast<size_t>((last + 1) * dtype_size(view.dtype));
}

Operands::Operands(const Context& context, bool on_device)
    : on_device_(on_device), context_(context) {
  if (!on_device_) return;
  context_.cuda.status =
      copy(MutableTensorView(reported_.data(), DType::kInt32, {std::ssize(reported_)}));
}

std::byte* Operands::copy_bytes(const void* data, size_t size) {
  const DeviceMemory& memory = memory_.emplace_back(size);
  if (status_.ok() && size > 0) status_ = copy_to_device(memory.data(), data, size);
  return memory.data();
}

void Operands::give_workspace(size_t size) {
  if (!on_device_) return;
  const DeviceMemory& workspace = memory_.emplace_back(size);
  context_.workspace = {workspace.data(), workspace.size()};
}

Status Operands::finish() {
  if (!on_device_) return {};
  Status status = wait_for_device();
  if (status.ok()) {
    status = copy_to_host(reported_.data(), context_.cuda.status.data, sizeof(reported_));
  }
  return status.ok() ? error_of(reported_) : status;
}

Status Operands::copy_back(const MutableTensorView& there, const MutableTensorView& host) const {
  const size_t size = span_bytes(host);
  return !on_device_ || size == 0 ? Status() : copy_to_host(host.data, there.data, size);
}

}  // namespace pagefill::cli
