// Promise 7: errors before faults. A bad argument is named, with what was expected and what came;
// nothing is written.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "bad_input.h"

namespace pagefill::testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TensorView table_with(const Arguments& a, int64_t entry, int32_t page) {
  static std::vector<int32_t> table;
  const auto* good = static_cast<const int32_t*>(a.page_table.data);
  table.assign(good, good + 20);
  table[static_cast<size_t>(entry)] = page;
  return {table.data(), {2, 10}};
}

// Room for the output, so that laid over the page table it meets nothing else, wherever the other
// arguments lie.
alignas(64) std::byte shared_memory[23 * 4 * 32 * sizeof(float)];

const int32_t* table_in(std::byte* memory, const Arguments& a) {
  std::memcpy(memory, a.page_table.data, 20 * sizeof(int32_t));
  return reinterpret_cast<const int32_t*>(memory);
}

const float kSomeSinks[4] = {};
alignas(64) std::byte some_workspace[64];

struct TooFewThreads final : Executor {
  int num_threads() const override { return 0; }
  void parallel_for(int64_t, void (*)(void*, int64_t), void*) override {}
} too_few_threads;

const BadInput kBadTensors[] = {
    {"query", "", [](Call& c) { c.arguments.query = {}; }},
    {"query", "null", [](Call& c) { c.arguments.query.data = nullptr; }},
    {"query", "[23, 4]", [](Call& c) { c.arguments.query.rank = 2; }},
    {"query", "", [](Call& c) { c.arguments.query.rank = 5; }},
    {"query", "", [](Call& c) { c.arguments.query.rank = -1; }},
    {"query", "", [](Call& c) { c.arguments.query.shape[0] = -1; }},
    {"query", "int32", [](Call& c) { c.arguments.query.dtype = DType::kInt32; }},
    {"query", "", [](Call& c) { c.arguments.query.dtype = static_cast<DType>(99); }},
    {"query", "", [](Call& c) { c.arguments.query.dtype = static_cast<DType>(-1); }},
    {"query", "0", [](Call& c) { c.arguments.query.shape[2] = 0; }},
    {"query", "12", [](Call& c) { c.arguments.query.shape[2] = 12; }},
    {"query", "3", [](Call& c) { c.arguments.query.shape[1] = 3; }},
    {"query", "0", [](Call& c) { c.arguments.query.shape[1] = 0; }},
    {"query", "2", [](Call& c) { c.arguments.query.strides[2] = 2; }},
    {"query", "-128", [](Call& c) { c.arguments.query.strides[0] = -128; }},
    {"query", "", [](Call& c) { c.arguments.query.strides[0] = kHuge; }},
    {"query", "",
     [](Call& c) {
       c.arguments.query.data = static_cast<const char*>(c.arguments.query.data) + 1;
     }},
    {"query", "CUDA",
     [](Call& c) {
       c.arguments.query.device = {DeviceType::kCuda, 0};
     },
     StatusCode::kUnsupported},

    {"key_cache", "", [](Call& c) { c.arguments.key_cache = {}; }},
    {"key_cache", "null", [](Call& c) { c.arguments.key_cache.data = nullptr; }},
    {"key_cache", "[2, 13, 16]", [](Call& c) { c.arguments.key_cache.rank = 3; }},
    {"key_cache", "int64", [](Call& c) { c.arguments.key_cache.dtype = DType::kInt64; }},
    {"key_cache", "0", [](Call& c) { c.arguments.key_cache.shape[0] = 0; }},
    {"key_cache", "0", [](Call& c) { c.arguments.key_cache.shape[2] = 0; }},
    {"key_cache", "40", [](Call& c) { c.arguments.key_cache.shape[3] = 40; }},
    {"key_cache", "2", [](Call& c) { c.arguments.key_cache.strides[3] = 2; }},
    {"key_cache", "", [](Call& c) { c.arguments.key_cache.strides[1] = kHuge; }},

    {"value_cache", "", [](Call& c) { c.arguments.value_cache = {}; }},
    {"value_cache", "null", [](Call& c) { c.arguments.value_cache.data = nullptr; }},
    {"value_cache", "bfloat16", [](Call& c) { c.arguments.value_cache.dtype = DType::kBFloat16; }},
    {"value_cache", "[1, ", [](Call& c) { c.arguments.value_cache.shape[0] = 1; }},
    {"value_cache", "[2, 12, ", [](Call& c) { c.arguments.value_cache.shape[1] = 12; }},
    {"value_cache", "[2, 13, 15, ", [](Call& c) { c.arguments.value_cache.shape[2] = 15; }},
    {"value_cache", "20", [](Call& c) { c.arguments.value_cache.shape[3] = 20; }},
    {"value_cache", "-1", [](Call& c) { c.arguments.value_cache.strides[2] = -1; }},
};

const BadInput kBadMetadata[] = {
    {"query_starts", "", [](Call& c) { c.arguments.query_starts = {}; }},
    {"query_starts", "int64", [](Call& c) { c.arguments.query_starts.dtype = DType::kInt64; }},
    {"query_starts", "[2]", [](Call& c) { c.arguments.query_starts = numbers<0, 23>(); }},
    {"query_starts", "1", [](Call& c) { c.arguments.query_starts = numbers<1, 20, 23>(); }},
    {"query_starts", "19", [](Call& c) { c.arguments.query_starts = numbers<0, 20, 19>(); }},
    {"query_starts", "24", [](Call& c) { c.arguments.query_starts = numbers<0, 20, 24>(); }},
    {"query_starts", "-3", [](Call& c) { c.arguments.query_starts = numbers<0, -3, 23>(); }},
    {"query_starts", "2", [](Call& c) { c.arguments.query_starts.strides[0] = 2; }},

    {"context_lens", "", [](Call& c) { c.arguments.context_lens = {}; }},
    {"context_lens", "float32", [](Call& c) { c.arguments.context_lens.dtype = DType::kFloat32; }},
    {"context_lens", "-1", [](Call& c) { c.arguments.context_lens = numbers<150, -1>(); }},
    {"context_lens", "161", [](Call& c) { c.arguments.context_lens = numbers<161, 40>(); }},
    {"context_lens", "2147483647",
     [](Call& c) { c.arguments.context_lens = numbers<150, 2147483647>(); }},
    {"context_lens", "null", [](Call& c) { c.arguments.context_lens.data = nullptr; }},

    {"page_table", "", [](Call& c) { c.arguments.page_table = {}; }},
    {"page_table", "int64", [](Call& c) { c.arguments.page_table.dtype = DType::kInt64; }},
    {"page_table", "[2]", [](Call& c) { c.arguments.page_table.rank = 1; }},
    {"page_table", "[1, 10]", [](Call& c) { c.arguments.page_table.shape[0] = 1; }},
    {"page_table", "-1", [](Call& c) { c.arguments.page_table = table_with(c.arguments, 3, -1); }},
    {"page_table", "13", [](Call& c) { c.arguments.page_table = table_with(c.arguments, 9, 13); }},
    {"page_table", "2147483647",
     [](Call& c) { c.arguments.page_table = table_with(c.arguments, 12, 2147483647); }},

    {"kv_start", "-1", [](Call& c) { c.arguments.options.kv_start = numbers<-1, 0>(); }},
    {"kv_start", "[1]", [](Call& c) { c.arguments.options.kv_start = numbers<0>(); }},
    {"kv_start", "float32",
     [](Call& c) { c.arguments.options.kv_start = TensorView(kSomeSinks, {2}); }},
};

const BadInput kBadOptions[] = {
    {"softmax_scale", "nan", [](Call& c) { c.arguments.options.softmax_scale = kNaN; }},
    {"softmax_scale", "inf", [](Call& c) { c.arguments.options.softmax_scale = kInf; }},
    {"softmax_scale", "-inf", [](Call& c) { c.arguments.options.softmax_scale = -kInf; }},
    {"attn_logits_soft_cap", "0", [](Call& c) { c.arguments.options.attn_logits_soft_cap = 0.0f; }},
    {"attn_logits_soft_cap", "-2",
     [](Call& c) { c.arguments.options.attn_logits_soft_cap = -2.0f; }},
    {"attn_logits_soft_cap", "nan",
     [](Call& c) { c.arguments.options.attn_logits_soft_cap = kNaN; }},
    {"attn_logits_soft_cap", "inf",
     [](Call& c) { c.arguments.options.attn_logits_soft_cap = kInf; }},
    {"sliding_window", "0", [](Call& c) { c.arguments.options.sliding_window = 0; }},
    {"sliding_window", "-7", [](Call& c) { c.arguments.options.sliding_window = -7; }},
    {"mask_value", "nan", [](Call& c) { c.arguments.options.mask_value = kNaN; }},
    {"mask_value", "inf", [](Call& c) { c.arguments.options.mask_value = kInf; }},
    {"sinks", "[3]", [](Call& c) { c.arguments.options.sinks = TensorView(kSomeSinks, {3}); }},
    {"sinks", "int32", [](Call& c) { c.arguments.options.sinks = numbers<1, 2, 3, 4>(); }},
    {"sinks", "null",
     [](Call& c) { c.arguments.options.sinks = TensorView(nullptr, DType::kFloat32, {4}); }},
};

const BadInput kBadOutputs[] = {
    {"output", "", [](Call& c) { c.arguments.output.output = {}; }},
    {"output", "null", [](Call& c) { c.arguments.output.output.data = nullptr; }},
    {"output", "[22, ", [](Call& c) { c.arguments.output.output.shape[0] = 22; }},
    {"output", "[23, 4, 40]", [](Call& c) { c.arguments.output.output.shape[2] = 40; }},
    {"output", "float16", [](Call& c) { c.arguments.output.output.dtype = DType::kFloat16; }},
    {"output", "CUDA",
     [](Call& c) {
       c.arguments.output.output.device = {DeviceType::kCuda, 0};
     },
     StatusCode::kUnsupported},
    {"output", "2", [](Call& c) { c.arguments.output.output.strides[2] = 2; }},
    {"output", "0", [](Call& c) { c.arguments.output.output.strides[1] = 0; }},
    {"output", "31", [](Call& c) { c.arguments.output.output.strides[1] = 31; }},
    {"output", "query",
     [](Call& c) { c.arguments.output.output.data = const_cast<void*>(c.arguments.query.data); }},
    {"output", "key_cache",
     [](Call& c) {
       c.arguments.output.output.data = const_cast<void*>(c.arguments.key_cache.data);
     }},
    {"output", "value_cache",
     [](Call& c) {
       c.arguments.output.output.data =
           static_cast<float*>(const_cast<void*>(c.arguments.value_cache.data)) + 100;
     }},
    {"output", "page_table",
     [](Call& c) {
       c.arguments.page_table.data = table_in(shared_memory, c.arguments);
       c.arguments.output.output.data = shared_memory;
     }},
    {"lse", "[23, 3]", [](Call& c) { c.arguments.output.lse.shape[1] = 3; }},
    {"lse", "[92]",
     [](Call& c) { c.arguments.output.lse.rank = 1, c.arguments.output.lse.shape[0] = 92; }},
    {"lse", "bfloat16", [](Call& c) { c.arguments.output.lse.dtype = DType::kBFloat16; }},
    {"lse", "null", [](Call& c) { c.arguments.output.lse.data = nullptr; }},
    {"lse", "3", [](Call& c) { c.arguments.output.lse.strides[0] = 3; }},
    {"lse", "output",
     [](Call& c) { c.arguments.output.lse.data = c.arguments.output.output.data; }},
    {"lse", "query",
     [](Call& c) { c.arguments.output.lse.data = const_cast<void*>(c.arguments.query.data); }},
};

const BadInput kBadContexts[] = {
    {"backend", "tpu", [](Call& c) { c.context.backend = "tpu"; }},
    {"backend", "\"\"", [](Call& c) { c.context.backend = ""; }},
    {"cpu_target", "mmx", [](Call& c) { c.context.cpu_target = "mmx"; }},
    {"cpu_target", "avx2",
     [](Call& c) { c.context.backend = "reference", c.context.cpu_target = "avx2"; }},
    {"num_threads", "-1", [](Call& c) { c.context.num_threads = -1; }},
    {"num_threads", "2", [](Call& c) { c.context.executor = &too_few_threads; }},
    {"executor", "0",
     [](Call& c) { c.context.executor = &too_few_threads, c.context.num_threads = 0; }},
    {"workspace", "63", [](Call& c) { c.context.workspace = std::span(some_workspace).first(63); },
     StatusCode::kResourceExhausted},
};

// By the single call's own names.
const BadInput kBadSingleCalls[] = {
    {"context_len", "", [](Call& c) { c.arguments.context_lens = {}; }},
    {"context_len", "[2]", [](Call& c) { c.arguments.context_lens = numbers<150, 40>(); }},
    {"context_len", "-1", [](Call& c) { c.arguments.context_lens = numbers<-1>(); }},
    {"context_len", "161", [](Call& c) { c.arguments.context_lens = numbers<161>(); }},
    {"context_len", "int64", [](Call& c) { c.arguments.context_lens.dtype = DType::kInt64; }},
    {"page_indices", "", [](Call& c) { c.arguments.page_table = {}; }},
    {"page_indices", "[1, 10]", [](Call& c) { c.arguments.page_table.shape[0] = 1; }},
    {"page_indices", "int64", [](Call& c) { c.arguments.page_table.dtype = DType::kInt64; }},
    {"page_indices", "-1",
     [](Call& c) { c.arguments.page_table = numbers<0, 1, 2, 3, 4, 5, 6, 7, 8, -1>(); }},
    {"page_indices", "10",
     [](Call& c) { c.arguments.page_table = numbers<10, 1, 2, 3, 4, 5, 6, 7, 8, 9>(); }},
    {"page_indices", "null", [](Call& c) { c.arguments.page_table.data = nullptr; }},
    {"query", "",
     [](Call& c) {
       c.arguments.query.shape[0] = c.arguments.output.output.shape[0] = int64_t{1} << 31;
     }},
};

Status single(const Call& c) {
  const Arguments& a = c.arguments;
  return prefill_page_attention(a.query, a.key_cache, a.value_cache, a.context_lens, a.page_table,
                                a.options, a.output, c.context);
}

TEST(Errors, OfTensorsAreNamed) { expect_refused(kBadTensors); }
TEST(Errors, OfMetadataAreNamed) { expect_refused(kBadMetadata); }
TEST(Errors, OfOptionsAreNamed) { expect_refused(kBadOptions); }
TEST(Errors, OfOutputsAreNamed) { expect_refused(kBadOutputs); }
TEST(Errors, OfTheContextAreNamed) { expect_refused(kBadContexts); }

TEST(Errors, OfTheSingleCallHaveItsOwnNames) {
  const Problem problem = random_problem({.sequences = {{20, 150}}});
  const Chunk chunks[] = {{0, 0, 20}};
  for (const BadInput& bad : kBadSingleCalls) {
    Call c{lay_out(problem, chunks, {}), {}};
    c.arguments.page_table.rank = 1;
    c.arguments.page_table.shape = {10};
    c.arguments.page_table.strides = {1};
    ASSERT_TRUE(single(c).ok()) << "the call is good before it is spoilt";
    const std::vector<std::byte> before = written_memory(c.arguments);
    if (std::string_view(bad.got) == "[1, 10]") {
      c.arguments.page_table.rank = 2, c.arguments.page_table.shape[1] = 10;
      c.arguments.page_table.strides = {10, 1};
    }
    bad.spoil(c);
    expect_named(single(c), bad);
    EXPECT_EQ(written_memory(c.arguments), before);
  }
}

TEST(Errors, TheCallIsGoodBeforeItIsSpoilt) {
  const Problem problem = two_sequences();
  for (const Where& where : host_targets()) {
    Call c{lay_out(problem, kTwoChunks, {}), {}};
    c.context.backend = where.backend;
    const Status status = ragged(c);
    EXPECT_TRUE(status.ok()) << status.message();
  }
}

TEST(Errors, TheWorkspaceIsNeededToTheLastByteAndAligned) {
  const Problem problem = two_sequences();
  for (const Where& where : cpu_targets()) {
    SCOPED_TRACE(describe(where));
    Call c{lay_out(problem, kTwoChunks, {}), {}};
    CallReport report;
    c.context.cpu_target = where.target;
    c.context.num_threads = 2;
    c.context.report = &report;
    const Arguments& a = c.arguments;
    const Result<size_t> size =
        attention_workspace_size(a.query, a.key_cache, a.value_cache, a.query_starts,
                                 a.context_lens, a.page_table, a.options, a.output, c.context);
    ASSERT_TRUE(size.ok()) << size.status().message();
    ASSERT_GT(*size, 0u);

    // The guard page behind the buffer faults when the call uses a byte more than it asked for.
    const size_t aligned =
        (*size + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
    const GuardedBuffer memory(static_cast<int64_t>(aligned), Guard::kBehind);
    const std::vector<std::byte> before = written_memory(a);
    c.context.workspace = {memory.data(), *size - 1};
    Status status = ragged(c);
    EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
    EXPECT_NE(status.message().find(std::to_string(*size)), std::string::npos) << status.message();
    EXPECT_NE(status.message().find(std::to_string(*size - 1)), std::string::npos)
        << status.message();

    const GuardedBuffer longer(static_cast<int64_t>(aligned) + 8, Guard::kBefore);
    c.context.workspace = {longer.data() + 8, *size};
    status = ragged(c);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_TRUE(status.message().starts_with("workspace:")) << status.message();
    EXPECT_EQ(written_memory(a), before);

    c.context.workspace = {memory.data(), *size};
    status = ragged(c);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(report.workspace_bytes, *size);
  }
}

}  // namespace
}  // namespace pagefill::testing
