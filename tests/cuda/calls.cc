// What a call on a device asks for, and what it refuses.
#include <atomic>

#include "cuda/device_run.h"

namespace pagefill::testing {
namespace {

Problem small_problem() {
  return random_problem({.sequences = {{20, 1150}, {1, 40}},
                         .head_dim = 64,
                         .query_dtype = DType::kBFloat16,
                         .cache_dtype = DType::kBFloat16});
}
const std::vector<Chunk> kChunks = {{0, 0, 20}, {1, 0, 1}};

void expect_error(const Status& status, StatusCode code, const std::string& message) {
  EXPECT_EQ(status.code(), code);
  EXPECT_EQ(status.message(), message);
}

TEST(CudaCalls, WithoutAWorkspaceSayHowMuchTheyNeed) {
  PAGEFILL_NEEDS_GPU();
  const Problem p = small_problem();
  DeviceRun run(p, kChunks);
  const Result<size_t> size = run.workspace_size();
  ASSERT_TRUE(size.ok()) << size.status().message();
  expect_error(run.enqueue(), StatusCode::kResourceExhausted,
               "workspace: expected " + std::to_string(*size) +
                   " bytes of memory of CUDA device 0, where a call allocates none, got none");
  run.take_workspace();
  run.context.workspace = run.context.workspace.first(*size - 1);
  expect_error(run.enqueue(), StatusCode::kResourceExhausted,
               "workspace: expected at least " + std::to_string(*size) + " bytes, got " +
                   std::to_string(*size - 1));
}

TEST(CudaCalls, WriteNothingBehindTheirWorkspace) {
  PAGEFILL_NEEDS_GPU();
  const Problem p = small_problem();
  DeviceRun run(p, kChunks);
  run.take_workspace();
  std::byte* const behind = run.memory().take(4096);
  ASSERT_TRUE(cli::fill_device(behind, 0xA5, 4096).ok());
  const std::byte* const end = run.context.workspace.data() + run.context.workspace.size();
  const Status status = run.enqueue();
  ASSERT_TRUE(status.ok()) << status.message();
  run.finish();
  std::vector<std::byte> bytes(static_cast<size_t>(behind + 4096 - end));
  ASSERT_TRUE(cli::copy_to_host(bytes.data(), end, bytes.size()).ok());
  for (std::byte b : bytes) ASSERT_TRUE(b == std::byte{0xA5} || b == std::byte{0xff});
}

TEST(CudaCalls, RefuseAPlanBelowZero) {
  PAGEFILL_NEEDS_GPU();
  const Problem p = small_problem();
  DeviceRun run(p, kChunks);
  run.context.cuda.max_chunk_size = -1;
  expect_error(run.enqueue(), StatusCode::kInvalidArgument,
               "cuda.max_chunk_size: expected 0 (total_tokens) or more, got -1");
  run.context.cuda.max_chunk_size = 0;
  run.context.cuda.max_context_len = -2;
  expect_error(run.enqueue(), StatusCode::kInvalidArgument,
               "cuda.max_context_len: expected 0 (max_pages * page_size) or more, got -2");
}

TEST(CudaCalls, RefuseToBeCancelled) {
  PAGEFILL_NEEDS_GPU();
  const Problem p = small_problem();
  DeviceRun run(p, kChunks);
  const std::atomic<int32_t> cancel = 0;
  run.context.cancel = &cancel;
  expect_error(
      run.enqueue(), StatusCode::kUnsupported,
      "cancel: expected none with memory of CUDA device 0, where a call only enqueues, got "
      "one");
}

TEST(CudaCalls, OnMemoryOfTheCpuTakeNoSettingsOfADevice) {
  const Problem p = random_problem({});
  const Chunk chunks[] = {{0, 0, 20}};
  const Arguments a = lay_out(p, chunks, {});
  Context context;
  context.cuda.max_chunk_size = 20;
  expect_error(ragged_page_attention(a.query, a.key_cache, a.value_cache, a.query_starts,
                                     a.context_lens, a.page_table, a.options, a.output, context),
               StatusCode::kInvalidArgument,
               "cuda: expected no settings for a CUDA device with tensors in memory of the CPU, "
               "got some");
}

TEST(CudaCalls, WithTensorsInTwoPlacesAreRefusedByName) {
  const Problem p = random_problem({});
  const Chunk chunks[] = {{0, 0, 20}};
  Arguments a = lay_out(p, chunks, {});
  a.page_table.device = {DeviceType::kCuda, 1};
  expect_error(
      ragged_page_attention(a.query, a.key_cache, a.value_cache, a.query_starts, a.context_lens,
                            a.page_table, a.options, a.output, {}),
      StatusCode::kUnsupported,
      "page_table: expected memory of the CPU, where key_cache is, got memory of CUDA device 1");
}

TEST(CudaCalls, OnABackendOfTheCpuAreRefusedByName) {
  const Problem p = random_problem({});
  const Chunk chunks[] = {{0, 0, 20}};
  Arguments a = lay_out(p, chunks, {});
  for (TensorView* view :
       {&a.query, &a.key_cache, &a.value_cache, &a.query_starts, &a.context_lens, &a.page_table}) {
    view->device = {DeviceType::kCuda, 0};
  }
  a.output.output.device = a.output.lse.device = {DeviceType::kCuda, 0};
  Context context;
  context.backend = "cpu";
  expect_error(ragged_page_attention(a.query, a.key_cache, a.value_cache, a.query_starts,
                                     a.context_lens, a.page_table, a.options, a.output, context),
               StatusCode::kUnsupported,
               "backend: expected a backend that works on memory of a CUDA device, where the "
               "tensors are, got cpu");
}

}  // namespace
}  // namespace pagefill::testing
