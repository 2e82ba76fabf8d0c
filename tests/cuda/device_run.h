// A call on the device with all that a caller can turn: stream, plan, status, workspace.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <vector>

#include "support/device.h"
#include "support/run.h"

namespace pagefill::testing {

// Skips a test by name where there is no GPU.
#define PAGEFILL_NEEDS_GPU() \
  if (!has_gpu()) GTEST_SKIP() << "no GPU here"

inline bool has_gpu() {
  for (const BackendInfo& backend : list_backends()) {
    if (backend.name == "cuda") return backend.available;
  }
  return false;
}

// The chunks' arguments on the device, and what a call needs there.
class DeviceRun {
 public:
  DeviceRun(const Problem& problem, const std::vector<Chunk>& chunks, const Layout& layout = {})
      : problem_(problem), host_(lay_out(problem, chunks, layout)), device_(host_) {
    const std::array<int32_t, 4> none{};
    context.backend = "cuda";
    status_ = device_.memory().copy(none.data(), sizeof(none));
    context.cuda.status = MutableTensorView(status_, DType::kInt32, {4});
    context.cuda.status.device = {DeviceType::kCuda, 0};
  }

  Result<size_t> workspace_size() const {
    const Arguments& a = device_.views();
    return attention_workspace_size(a.query, a.key_cache, a.value_cache, a.query_starts,
                                    a.context_lens, a.page_table, a.options, a.output, context);
  }
  // Gives the call exactly what it asks for.
  void take_workspace() {
    const Result<size_t> size = workspace_size();
    ASSERT_TRUE(size.ok()) << size.status().message();
    context.workspace = {device_.memory().take(*size), *size};
  }
  Status enqueue() const {
    const Arguments& a = device_.views();
    return ragged_page_attention(a.query, a.key_cache, a.value_cache, a.query_starts,
                                 a.context_lens, a.page_table, a.options, a.output, context);
  }
  // Enqueues and waits.
  void run() {
    take_workspace();
    const Status status = enqueue();
    ASSERT_TRUE(status.ok()) << status.message();
    finish();
  }
  void finish() {
    const Status status = device_.copy_back();
    ASSERT_TRUE(status.ok()) << status.message();
  }

  // Writes numbers over device metadata, from entry `at` on.
  void overwrite(const TensorView& view, int64_t at, const std::vector<int32_t>& numbers) const {
    auto* const to = static_cast<int32_t*>(const_cast<void*>(view.data)) + at;
    ASSERT_TRUE(cli::copy_to_device(to, numbers.data(), numbers.size() * 4).ok());
  }
  std::array<int32_t, 4> reported() const {
    std::array<int32_t, 4> numbers{};
    EXPECT_TRUE(cli::copy_to_host(numbers.data(), status_, sizeof(numbers)).ok());
    return numbers;
  }

  // Other memory than the arguments'.
  void use_caches(const TensorView& keys, const TensorView& values) {
    device_.views().key_cache = keys, device_.views().value_cache = values;
  }
  const Arguments& views() const { return device_.views(); }
  DeviceCopies& memory() { return device_.memory(); }
  // The bytes of a row of the host's output, after run or finish.
  std::vector<std::byte> row(int64_t token, int64_t head) const {
    const MutableTensorView& out = host_.output.output;
    const int64_t size = dtype_size(out.dtype);
    const std::byte* const at =
        host_.output_memory.data() + (token * out.strides[0] + head * out.strides[1]) * size;
    return {at, at + problem_.v_head_dim * size};
  }
  float lse(int64_t token, int64_t head) const {
    float x;
    std::memcpy(&x,
                host_.lse_memory.data() +
                    (token * host_.output.lse.strides[0] + head * host_.output.lse.strides[1]) * 4,
                sizeof(x));
    return x;
  }

  Context context;

 private:
  const Problem& problem_;
  Arguments host_;
  DeviceArguments device_;
  std::byte* status_ = nullptr;
};

}  // namespace pagefill::testing
