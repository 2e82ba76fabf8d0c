// What a call costs when there is next to nothing to do: one token at context 1, a serial executor, the
// caller's workspace. Prints the instruction set that ran and nanoseconds per call; bench/one_token.sh
// counts the instructions of measured_calls.
#include <pagefill/pagefill.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr int64_t kQHeads = 32, kKvHeads = 8, kHeadDim = 128, kPageSize = 16;
constexpr int kWarmUpCalls = 100;

struct Arguments {
  pagefill_tensor query, key_cache, value_cache, query_starts, context_lens, page_table, output;
  pagefill_context context;
};

void check(pagefill_status status) {
  if (status == PAGEFILL_OK) return;
  std::fprintf(stderr, "%s\n", pagefill_last_error_message());
  std::exit(1);
}

void parallel_for(void*, int64_t num_tasks, void (*task)(void*, int64_t), void* argument) {
  for (int64_t i = 0; i < num_tasks; ++i) task(argument, i);
}

template <typename T>
pagefill_tensor tensor(std::vector<T>& data, int32_t dtype, std::vector<int64_t> shape) {
  return pagefill_tensor_init(data.data(), dtype, static_cast<int32_t>(shape.size()), shape.data());
}

void calls(const Arguments& a, int num_calls) {
  for (int i = 0; i < num_calls; ++i) {
    check(pagefill_ragged_page_attention(&a.query, &a.key_cache, &a.value_cache, &a.query_starts,
                                         &a.context_lens, &a.page_table, nullptr, &a.output,
                                         nullptr, &a.context));
  }
}

}  // namespace

// Named as in C, and not inlined, so that callgrind finds it.
extern "C" [[gnu::noinline]] void measured_calls(const Arguments& a, int num_calls) {
  calls(a, num_calls);
}

int main(int argc, char** argv) {
  const int num_calls = argc > 1 ? std::atoi(argv[1]) : 100'000;
  std::vector<float> query(kQHeads * kHeadDim), output(kQHeads * kHeadDim);
  std::vector<float> keys(kKvHeads * kPageSize * kHeadDim), values(keys.size());
  std::vector<int32_t> query_starts = {0, 1}, context_lens = {1}, page_table = {0};
  Arguments a = {
      .query = tensor(query, PAGEFILL_FLOAT32, {1, kQHeads, kHeadDim}),
      .key_cache = tensor(keys, PAGEFILL_FLOAT32, {kKvHeads, 1, kPageSize, kHeadDim}),
      .value_cache = tensor(values, PAGEFILL_FLOAT32, {kKvHeads, 1, kPageSize, kHeadDim}),
      .query_starts = tensor(query_starts, PAGEFILL_INT32, {2}),
      .context_lens = tensor(context_lens, PAGEFILL_INT32, {1}),
      .page_table = tensor(page_table, PAGEFILL_INT32, {1, 1}),
      .output = tensor(output, PAGEFILL_FLOAT32, {1, kQHeads, kHeadDim}),
      .context = pagefill_context_init(),
  };
  pagefill_executor executor = pagefill_executor_init();
  executor.parallel_for = parallel_for;
  pagefill_call_report report = pagefill_call_report_init();
  a.context.executor = &executor;
  a.context.report = &report;
  check(pagefill_attention_workspace_size(&a.query, &a.key_cache, &a.value_cache, &a.query_starts,
                                          &a.context_lens, &a.page_table, nullptr, &a.output,
                                          nullptr, &a.context, &a.context.workspace_size));
  struct alignas(PAGEFILL_WORKSPACE_ALIGNMENT) Line {
    unsigned char bytes[PAGEFILL_WORKSPACE_ALIGNMENT];
  };
  std::vector<Line> workspace(a.context.workspace_size / sizeof(Line) + 1);
  a.context.workspace = workspace.data();

  calls(a, kWarmUpCalls);
  const auto start = std::chrono::steady_clock::now();
  measured_calls(a, num_calls);
  const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
  std::printf("%s %.0f\n", report.target, time.count() / num_calls);
}
