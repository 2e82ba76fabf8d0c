// How calls of the C interface run: whose threads, whose message, and nothing thrown.
#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>

#include "call.h"

namespace pagefill::testing {
namespace {

using Task = void (*)(void* argument, int64_t index);

// Counts, and runs the tasks from the last to the first.
struct CountingExecutor {
  std::atomic<int> calls{0};
  std::atomic<int64_t> tasks{0};
  int64_t most_tasks = 0;

  static void parallel_for(void* self, int64_t num_tasks, Task task, void* argument) {
    auto& executor = *static_cast<CountingExecutor*>(self);
    ++executor.calls;
    executor.tasks += num_tasks;
    executor.most_tasks = std::max(executor.most_tasks, num_tasks);
    for (int64_t i = num_tasks; i-- > 0;) task(argument, i);
  }
};

TEST(CApiCalls, TheCallersExecutorRunsTheTasks) {
  Call call;
  CountingExecutor executor;
  call.executor.self = &executor;
  call.executor.parallel_for = CountingExecutor::parallel_for;
  call.executor.num_threads = 3;
  call.context.executor = &call.executor;
  call.context.backend = "cpu";
  ASSERT_EQ(call.ragged(), PAGEFILL_OK) << pagefill_last_error_message();
  EXPECT_GT(executor.calls, 0);
  EXPECT_GT(executor.tasks, 0);
  EXPECT_LE(executor.most_tasks, 3);
  EXPECT_EQ(call.report.num_threads, 3);
  EXPECT_STREQ(call.report.backend, "cpu");

  Call own_threads;
  own_threads.context.backend = "cpu";
  ASSERT_EQ(own_threads.ragged(), PAGEFILL_OK);
  EXPECT_EQ(call.output_data, own_threads.output_data);
  EXPECT_EQ(call.lse_data, own_threads.lse_data);
}

TEST(CApiCalls, AnExecutorThatThrowsOrForgetsIsAnInternalError) {
  const auto throws = [](void*, int64_t, Task, void*) {
    throw std::runtime_error("no threads today");
  };
  const auto throws_int = [](void*, int64_t, Task, void*) { throw 7; };
  const auto forgets = [](void*, int64_t, Task, void*) {};
  for (void (*parallel_for)(void*, int64_t, Task, void*) : {+throws, +throws_int, +forgets}) {
    Call call;
    call.executor.parallel_for = parallel_for;
    call.executor.num_threads = 2;
    call.context.executor = &call.executor;
    EXPECT_EQ(call.ragged(), PAGEFILL_INTERNAL);
    EXPECT_NE(std::string(pagefill_last_error_message()).find("executor"), std::string::npos)
        << pagefill_last_error_message();
    EXPECT_STREQ(call.report.backend, "");
  }
}

TEST(CApiCalls, TheBackendAskedForIsTheOneThatRuns) {
  for (const char* backend : {"cpu", "reference"}) {
    Call call;
    call.context.backend = backend;
    ASSERT_EQ(call.ragged(), PAGEFILL_OK) << pagefill_last_error_message();
    EXPECT_STREQ(call.report.backend, backend);
  }
}

TEST(CApiCalls, EveryThreadHasTheMessageOfItsOwnLastError) {
  Call call;
  call.query = nullptr;
  ASSERT_EQ(call.ragged(), PAGEFILL_INVALID_ARGUMENT);
  const std::string mine = pagefill_last_error_message();
  std::string before, after;
  std::thread([&] {
    before = pagefill_last_error_message();
    Call other;
    other.output = nullptr;
    EXPECT_EQ(other.ragged(), PAGEFILL_INVALID_ARGUMENT);
    after = pagefill_last_error_message();
  }).join();
  EXPECT_EQ(mine, "query: expected a pointer, got null");
  EXPECT_EQ(before, "");
  EXPECT_EQ(after, "output: expected a pointer, got null");
  EXPECT_EQ(pagefill_last_error_message(), mine);

  Call good;
  ASSERT_EQ(good.ragged(), PAGEFILL_OK);
  EXPECT_EQ(pagefill_last_error_message(), mine);
}

TEST(CApiCalls, EveryNullPointerIsNamed) {
  Call call;
  pagefill_page_allocator* allocator = nullptr;
  ASSERT_EQ(pagefill_page_allocator_create(4, 2, &allocator), PAGEFILL_OK);
  int64_t number = 0;
  ASSERT_EQ(pagefill_page_allocator_add_sequence(allocator, &number), PAGEFILL_OK);
  pagefill_page_copy copy{};
  size_t num_copies = 0;
  pagefill_page_allocator_info info = pagefill_page_allocator_info_init();
  pagefill_sequence_info sequence = pagefill_sequence_info_init();
  const pagefill_tensor *t = call.output, *l = call.lse, *k = call.key_cache;
  const auto named = [](pagefill_status status, const char* argument) {
    EXPECT_EQ(status, PAGEFILL_INVALID_ARGUMENT) << argument;
    EXPECT_EQ(pagefill_last_error_message(),
              std::string(argument) + ": expected a pointer, got null");
  };
  const auto prefill = [&](const pagefill_tensor* context_len,
                           const pagefill_tensor* page_indices) {
    return pagefill_prefill_page_attention(t, k, k, context_len, page_indices, nullptr, t, l,
                                           nullptr);
  };
  named(prefill(nullptr, t), "context_len");
  named(prefill(t, nullptr), "page_indices");
  named(call.workspace_size(nullptr), "workspace_size");

  named(pagefill_merge_attention_states(nullptr, l, t, l, t, l, nullptr), "output_a");
  named(pagefill_merge_attention_states(t, nullptr, t, l, t, l, nullptr), "lse_a");
  named(pagefill_merge_attention_states(t, l, nullptr, l, t, l, nullptr), "output_b");
  named(pagefill_merge_attention_states(t, l, t, nullptr, t, l, nullptr), "lse_b");
  named(pagefill_merge_attention_states(t, l, t, l, nullptr, l, nullptr), "merged_output");

  named(pagefill_append_kv(nullptr, t, k, k, t, t, t, nullptr, nullptr), "keys");
  named(pagefill_append_kv(t, nullptr, k, k, t, t, t, nullptr, nullptr), "values");
  named(pagefill_append_kv(t, t, nullptr, k, t, t, t, nullptr, nullptr), "key_cache");
  named(pagefill_append_kv(t, t, k, nullptr, t, t, t, nullptr, nullptr), "value_cache");
  named(pagefill_append_kv(t, t, k, k, nullptr, t, t, nullptr, nullptr), "query_starts");
  named(pagefill_append_kv(t, t, k, k, t, nullptr, t, nullptr, nullptr), "context_lens");
  named(pagefill_append_kv(t, t, k, k, t, t, nullptr, nullptr, nullptr), "page_table");
  named(pagefill_copy_pages(nullptr, 1, k, k, nullptr, nullptr), "copies");
  named(pagefill_copy_pages(&copy, 1, nullptr, k, nullptr, nullptr), "key_cache");
  named(pagefill_copy_pages(&copy, 1, k, nullptr, nullptr, nullptr), "value_cache");

  named(pagefill_page_allocator_create(4, 2, nullptr), "allocator");
  named(pagefill_page_allocator_add_sequence(nullptr, &number), "allocator");
  named(pagefill_page_allocator_add_sequence(allocator, nullptr), "sequence");
  named(pagefill_page_allocator_fork(nullptr, 0, &number), "allocator");
  named(pagefill_page_allocator_fork(allocator, number, nullptr), "sequence");
  named(pagefill_page_allocator_append(nullptr, 0, 1, &copy, &num_copies), "allocator");
  named(pagefill_page_allocator_append(allocator, number, 1, nullptr, &num_copies), "copy");
  named(pagefill_page_allocator_append(allocator, number, 1, &copy, nullptr), "num_copies");
  named(pagefill_page_allocator_truncate(nullptr, 0, 0), "allocator");
  named(pagefill_page_allocator_drop_before(nullptr, 0, 0), "allocator");
  named(pagefill_page_allocator_release(nullptr, 0), "allocator");
  named(pagefill_page_allocator_get_info(nullptr, &info), "allocator");
  named(pagefill_page_allocator_get_info(allocator, nullptr), "info");
  named(pagefill_page_allocator_reference_count(nullptr, 0, &number), "allocator");
  named(pagefill_page_allocator_reference_count(allocator, 0, nullptr), "reference_count");
  named(pagefill_page_allocator_get_sequence(nullptr, 0, &sequence), "allocator");
  named(pagefill_page_allocator_get_sequence(allocator, number, nullptr), "info");

  named(pagefill_get_num_backends(nullptr), "num_backends");
  named(pagefill_get_backend_info(0, nullptr), "info");
  named(pagefill_get_target_info(0, 0, nullptr), "info");
  named(pagefill_choose_backend(nullptr, nullptr), "choice");

  // None of the calls that were refused has changed the allocator.
  ASSERT_EQ(pagefill_page_allocator_get_info(allocator, &info), PAGEFILL_OK);
  EXPECT_EQ(info.num_free_pages, 4);
  EXPECT_EQ(info.num_sequences, 1);
  pagefill_page_allocator_destroy(allocator);
}

TEST(CApiCalls, EveryStructThatIsFilledInHasItsSizeChecked) {
  const auto refused = [](pagefill_status status, const char* name, size_t size) {
    EXPECT_EQ(status, PAGEFILL_INVALID_ARGUMENT);
    EXPECT_EQ(pagefill_last_error_message(), std::string(name) + ".struct_size: expected " +
                                                 std::to_string(size) + ", got " +
                                                 std::to_string(size + 8));
  };
  pagefill_page_allocator* allocator = nullptr;
  ASSERT_EQ(pagefill_page_allocator_create(4, 2, &allocator), PAGEFILL_OK);
  int64_t id = 0;
  ASSERT_EQ(pagefill_page_allocator_add_sequence(allocator, &id), PAGEFILL_OK);
  pagefill_page_allocator_info info = pagefill_page_allocator_info_init();
  info.struct_size += 8;
  refused(pagefill_page_allocator_get_info(allocator, &info), "info", sizeof info);
  pagefill_sequence_info sequence = pagefill_sequence_info_init();
  sequence.struct_size += 8;
  refused(pagefill_page_allocator_get_sequence(allocator, id, &sequence), "info", sizeof sequence);
  pagefill_page_allocator_destroy(allocator);

  const Call call;
  const pagefill_tensor *t = call.query, *k = call.key_cache;
  pagefill_append_options append = pagefill_append_options_init();
  append.struct_size += 8;
  refused(pagefill_append_kv(t, t, k, k, t, t, t, &append, nullptr), "options", sizeof append);
  pagefill_copy_options copy = pagefill_copy_options_init();
  copy.struct_size += 8;
  refused(pagefill_copy_pages(nullptr, 0, k, k, &copy, nullptr), "options", sizeof copy);

  pagefill_backend_info backend = pagefill_backend_info_init();
  backend.struct_size += 8;
  refused(pagefill_get_backend_info(0, &backend), "info", sizeof backend);
  pagefill_target_info target = pagefill_target_info_init();
  target.struct_size += 8;
  refused(pagefill_get_target_info(0, 0, &target), "info", sizeof target);
  pagefill_backend_choice choice = pagefill_backend_choice_init();
  choice.struct_size += 8;
  refused(pagefill_choose_backend(nullptr, &choice), "choice", sizeof choice);
}

TEST(CApiCalls, StructsOfTheirFirstSizeAreStillTaken) {
  Call call;
  call.context.struct_size = offsetof(pagefill_context, cuda_stream);
  call.context.cuda_stream = &call;  // behind its end: not looked at
  EXPECT_EQ(call.ragged(), PAGEFILL_OK) << pagefill_last_error_message();

  pagefill_backend_info info = pagefill_backend_info_init();
  info.struct_size = offsetof(pagefill_backend_info, memory);
  info.memory = info.half_weights = 77;
  ASSERT_EQ(pagefill_get_backend_info(0, &info), PAGEFILL_OK);
  EXPECT_STRNE(info.name, "");
  EXPECT_EQ(info.memory, 77) << "written behind its end";
  EXPECT_EQ(info.half_weights, 77) << "written behind its end";

  pagefill_copy_options copy = pagefill_copy_options_init();
  copy.struct_size = offsetof(pagefill_copy_options, copies);
  copy.copies = call.query;  // behind its end: not looked at
  EXPECT_EQ(pagefill_copy_pages(nullptr, 0, call.key_cache, call.value_cache, &copy, nullptr),
            PAGEFILL_OK)
      << pagefill_last_error_message();
}

TEST(CApiCalls, IndicesOutOfRangeAreRefused) {
  pagefill_backend_info backend = pagefill_backend_info_init();
  pagefill_target_info target = pagefill_target_info_init();
  int32_t num_backends = 0;
  ASSERT_EQ(pagefill_get_num_backends(&num_backends), PAGEFILL_OK);
  for (int32_t index : {-1, num_backends, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(pagefill_get_backend_info(index, &backend), PAGEFILL_INVALID_ARGUMENT);
    EXPECT_EQ(pagefill_get_target_info(index, 0, &target), PAGEFILL_INVALID_ARGUMENT);
    EXPECT_EQ(pagefill_get_target_info(0, index == num_backends ? 1000 : index, &target),
              PAGEFILL_INVALID_ARGUMENT);
  }
}

TEST(CApiCalls, ATensorOfAnImpossibleRankIsRefusedByTheCall) {
  const int64_t shape[4] = {1, 1, 1, 1};
  EXPECT_EQ(pagefill_tensor_init(nullptr, PAGEFILL_FLOAT32, 5, shape).rank, -1);
  EXPECT_EQ(pagefill_tensor_init(nullptr, PAGEFILL_FLOAT32, -3, shape).rank, -1);
  EXPECT_EQ(pagefill_tensor_init(nullptr, PAGEFILL_FLOAT32, 2, nullptr).rank, -1);
}

}  // namespace
}  // namespace pagefill::testing
