// What a bad argument gets through the C interface: the status, a message that names it, and nothing
// written.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "call.h"

namespace pagefill::testing {
namespace {

struct Row {
  const char* what;
  std::function<void(Call&)> spoil;
  pagefill_status status;
  const char* message_begins;
};

void expect_refused(const Row& row) {
  SCOPED_TRACE(row.what);
  Call call;
  row.spoil(call);
  EXPECT_EQ(call.ragged(), row.status);
  const std::string message = pagefill_last_error_message();
  EXPECT_EQ(message.rfind(row.message_begins, 0), 0u) << message;
  EXPECT_NE(message.find("expected"), std::string::npos) << message;
  EXPECT_NE(message.find("got"), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  EXPECT_TRUE(call.untouched());

  size_t size = 77;
  EXPECT_EQ(call.workspace_size(&size), row.status);
  EXPECT_EQ(size, 77u);
}

// An argument by its name, its struct, and where its pointer stands.
struct TensorArgument {
  std::string name;
  std::function<pagefill_tensor&(Call&)> tensor;
  std::function<const pagefill_tensor*&(Call&)> pointer;
  bool optional = false;
};

const std::vector<TensorArgument>& tensor_arguments() {
#define ARGUMENT(name, where, optional)                                                       \
  {                                                                                           \
#name, [](Call& c) -> pagefill_tensor& { return c.name##_tensor; },                         \
        [](Call& c) -> const pagefill_tensor*& { return c.where; }, optional \
  }
  static const std::vector<TensorArgument> arguments = {
      ARGUMENT(query, query, false),
      ARGUMENT(key_cache, key_cache, false),
      ARGUMENT(value_cache, value_cache, false),
      ARGUMENT(query_starts, query_starts, false),
      ARGUMENT(context_lens, context_lens, false),
      ARGUMENT(page_table, page_table, false),
      ARGUMENT(output, output, false),
      ARGUMENT(lse, lse, true),
      ARGUMENT(sinks, options.sinks, true),
      ARGUMENT(kv_start, options.kv_start, true),
  };
#undef ARGUMENT
  return arguments;
}

TEST(CApiBadInput, TheCallThatTheTablesSpoilIsGood) {
  Call call;
  EXPECT_EQ(call.ragged(), PAGEFILL_OK) << pagefill_last_error_message();
  EXPECT_FALSE(call.untouched());
}

TEST(CApiBadInput, EveryTensorIsRefusedByName) {
  struct Spoilt {
    const char* what;
    void (*spoil)(pagefill_tensor&);
    pagefill_status status;
    const char* field;
  };
  const Spoilt kSpoilt[] = {
      {"struct_size 0", [](pagefill_tensor& t) { t.struct_size = 0; }, PAGEFILL_INVALID_ARGUMENT,
       ".struct_size"},
      {"a struct of an older version", [](pagefill_tensor& t) { t.struct_size -= 8; },
       PAGEFILL_INVALID_ARGUMENT, ".struct_size"},
      {"a struct of a newer version", [](pagefill_tensor& t) { t.struct_size += 8; },
       PAGEFILL_INVALID_ARGUMENT, ".struct_size"},
      {"dtype -1", [](pagefill_tensor& t) { t.dtype = -1; }, PAGEFILL_INVALID_ARGUMENT, ".dtype"},
      {"dtype 9", [](pagefill_tensor& t) { t.dtype = 9; }, PAGEFILL_INVALID_ARGUMENT, ".dtype"},
      {"float64", [](pagefill_tensor& t) { t.dtype = PAGEFILL_FLOAT64; }, PAGEFILL_INVALID_ARGUMENT,
       ""},
      {"device type 2", [](pagefill_tensor& t) { t.device_type = 2; }, PAGEFILL_INVALID_ARGUMENT,
       ".device_type"},
      {"CUDA memory", [](pagefill_tensor& t) { t.device_type = PAGEFILL_CUDA; },
       PAGEFILL_UNSUPPORTED, ""},
      {"rank -1", [](pagefill_tensor& t) { t.rank = -1; }, PAGEFILL_INVALID_ARGUMENT, ""},
      {"rank 5", [](pagefill_tensor& t) { t.rank = 5; }, PAGEFILL_INVALID_ARGUMENT, ""},
      {"rank INT32_MAX", [](pagefill_tensor& t) { t.rank = INT32_MAX; }, PAGEFILL_INVALID_ARGUMENT,
       ""},
      {"rank 0 without data", [](pagefill_tensor& t) { t.rank = 0, t.data = nullptr; },
       PAGEFILL_INVALID_ARGUMENT, ""},
      {"a negative extent", [](pagefill_tensor& t) { t.shape[t.rank - 1] = -8; },
       PAGEFILL_INVALID_ARGUMENT, ""},
      {"no data", [](pagefill_tensor& t) { t.data = nullptr; }, PAGEFILL_INVALID_ARGUMENT, ""},
      {"data between two elements",
       [](pagefill_tensor& t) { t.data = static_cast<char*>(t.data) + 1; },
       PAGEFILL_INVALID_ARGUMENT, ""},
      {"an innermost stride of 2", [](pagefill_tensor& t) { t.strides[t.rank - 1] = 2; },
       PAGEFILL_INVALID_ARGUMENT, ""},
      {"a negative stride", [](pagefill_tensor& t) { t.strides[0] = -8; },
       PAGEFILL_INVALID_ARGUMENT, ""},
      {"strides beyond 2^63 bytes", [](pagefill_tensor& t) { t.strides[0] = INT64_MAX / 2; },
       PAGEFILL_INVALID_ARGUMENT, ""},
  };
  for (const TensorArgument& argument : tensor_arguments()) {
    for (const Spoilt& s : kSpoilt) {
      const std::string what = argument.name + ": " + s.what, begins = argument.name + s.field;
      expect_refused({what.c_str(), [&](Call& call) { s.spoil(argument.tensor(call)); }, s.status,
                      begins.c_str()});
    }
    if (argument.optional) continue;
    const std::string what = argument.name + ": null", begins = argument.name + ": ";
    expect_refused({what.c_str(), [&](Call& call) { argument.pointer(call) = nullptr; },
                    PAGEFILL_INVALID_ARGUMENT, begins.c_str()});
  }
}

TEST(CApiBadInput, ScalesAreRefusedByName) {
  struct Spoilt {
    const char* what;
    void (*spoil)(pagefill_tensor&);
    const char* field;
  };
  const Spoilt kSpoilt[] = {
      {"struct_size 0", [](pagefill_tensor& t) { t.struct_size = 0; }, ".struct_size"},
      {"dtype 9", [](pagefill_tensor& t) { t.dtype = 9; }, ".dtype"},
      {"int32", [](pagefill_tensor& t) { t.dtype = PAGEFILL_INT32; }, ""},
      {"rank 2", [](pagefill_tensor& t) { t.rank = 2; }, ""},
      {"rank 0 without data", [](pagefill_tensor& t) { t.rank = 0, t.data = nullptr; }, ""},
      {"another page_size", [](pagefill_tensor& t) { t.shape[2] += 1; }, ""},
      {"no data", [](pagefill_tensor& t) { t.data = nullptr; }, ""},
      {"a negative stride", [](pagefill_tensor& t) { t.strides[2] = -1; }, ""},
      {"strides beyond 2^63 bytes", [](pagefill_tensor& t) { t.strides[0] = INT64_MAX / 2; }, ""},
  };
  for (const Spoilt& s : kSpoilt) {
    const std::string key = std::string("key_scale") + s.field;
    expect_refused({s.what, [&](Call& c) { c.quantise(), s.spoil(c.key_scale_tensor); },
                    PAGEFILL_INVALID_ARGUMENT, key.c_str()});
    const std::string value = std::string("value_scale") + s.field;
    expect_refused({s.what, [&](Call& c) { c.quantise(), s.spoil(c.value_scale_tensor); },
                    PAGEFILL_INVALID_ARGUMENT, value.c_str()});
  }
  expect_refused({"a scale of a float32 cache",
                  [](Call& c) { c.options.key_scale = &c.key_scale_tensor; },
                  PAGEFILL_INVALID_ARGUMENT, "key_scale: expected none"});
  Call call;
  call.quantise();
  call.key_scale_tensor.strides[2] = 0;  // strides of scales are free
  EXPECT_EQ(call.ragged(), PAGEFILL_OK) << pagefill_last_error_message();
}

TEST(CApiBadInput, OptionalTensorsMayBeNull) {
  for (const TensorArgument& argument : tensor_arguments()) {
    if (!argument.optional) continue;
    Call call;
    argument.pointer(call) = nullptr;
    EXPECT_EQ(call.ragged(), PAGEFILL_OK) << argument.name << pagefill_last_error_message();
  }
}

TEST(CApiBadInput, OptionsContextAndMetadataAreRefusedByName) {
  const auto with = [](uint32_t flag, auto set) {
    return [=](Call& c) {
      c.options.flags = flag;
      set(c.options);
    };
  };
  using Options = pagefill_attention_options;
  static std::byte scratch[1 << 16];
  const Row kRows[] = {
      {"options of a newer version", [](Call& c) { c.options.struct_size += 8; },
       PAGEFILL_INVALID_ARGUMENT, "options.struct_size: expected "},
      {"an unknown flag", [](Call& c) { c.options.flags = 16; }, PAGEFILL_INVALID_ARGUMENT,
       "options.flags"},
      {"all flags", [](Call& c) { c.options.flags = ~0u; }, PAGEFILL_INVALID_ARGUMENT,
       "options.flags"},
      {"a scale without its flag", with(0, [](Options& o) { o.softmax_scale = 0.5f; }),
       PAGEFILL_INVALID_ARGUMENT, "options.softmax_scale"},
      {"a cap without its flag", with(0, [](Options& o) { o.attn_logits_soft_cap = NAN; }),
       PAGEFILL_INVALID_ARGUMENT, "options.attn_logits_soft_cap"},
      {"a window without its flag", with(0, [](Options& o) { o.sliding_window = 4; }),
       PAGEFILL_INVALID_ARGUMENT, "options.sliding_window"},
      {"a mask value without its flag", with(0, [](Options& o) { o.mask_value = -1; }),
       PAGEFILL_INVALID_ARGUMENT, "options.mask_value"},
      {"a scale that is no number",
       with(PAGEFILL_HAS_SOFTMAX_SCALE, [](Options& o) { o.softmax_scale = NAN; }),
       PAGEFILL_INVALID_ARGUMENT, "softmax_scale"},
      {"a cap of 0", with(PAGEFILL_HAS_ATTN_LOGITS_SOFT_CAP, [](Options&) {}),
       PAGEFILL_INVALID_ARGUMENT, "attn_logits_soft_cap"},
      {"a window of 0", with(PAGEFILL_HAS_SLIDING_WINDOW, [](Options&) {}),
       PAGEFILL_INVALID_ARGUMENT, "sliding_window"},
      {"a mask value of +inf",
       with(PAGEFILL_HAS_MASK_VALUE, [](Options& o) { o.mask_value = INFINITY; }),
       PAGEFILL_INVALID_ARGUMENT, "mask_value"},
      {"a context of a newer version", [](Call& c) { c.context.struct_size += 8; },
       PAGEFILL_INVALID_ARGUMENT, "context.struct_size"},
      {"a context of an unknown, older version", [](Call& c) { c.context.struct_size -= 16; },
       PAGEFILL_INVALID_ARGUMENT, "context.struct_size"},
      {"a stream beside memory of the CPU", [](Call& c) { c.context.cuda_stream = scratch; },
       PAGEFILL_INVALID_ARGUMENT, "cuda"},
      {"a plan beside memory of the CPU", [](Call& c) { c.context.cuda_max_chunk_size = 8; },
       PAGEFILL_INVALID_ARGUMENT, "cuda"},
      {"a status buffer beside memory of the CPU",
       [](Call& c) { c.context.cuda_status = &c.query_tensor; }, PAGEFILL_INVALID_ARGUMENT, "cuda"},
      {"an unknown backend", [](Call& c) { c.context.backend = "abacus"; },
       PAGEFILL_INVALID_ARGUMENT, "backend"},
      {"an unknown target", [](Call& c) { c.context.cpu_target = "z80"; },
       PAGEFILL_INVALID_ARGUMENT, "cpu_target"},
      {"threads below 0", [](Call& c) { c.context.num_threads = -1; }, PAGEFILL_INVALID_ARGUMENT,
       "num_threads"},
      {"an executor of a newer version",
       [](Call& c) { c.context.executor = &c.executor, c.executor.struct_size += 8; },
       PAGEFILL_INVALID_ARGUMENT, "executor.struct_size"},
      {"an executor without parallel_for", [](Call& c) { c.context.executor = &c.executor; },
       PAGEFILL_INVALID_ARGUMENT, "executor.parallel_for"},
      {"a report of a newer version", [](Call& c) { c.report.struct_size += 8; },
       PAGEFILL_INVALID_ARGUMENT, "report.struct_size"},
      {"a workspace of no size", [](Call& c) { c.context.workspace = scratch; },
       PAGEFILL_INVALID_ARGUMENT, "workspace"},
      {"a workspace size without memory", [](Call& c) { c.context.workspace_size = 64; },
       PAGEFILL_INVALID_ARGUMENT, "workspace"},
      {"a last element at 2^63 - 1",
       [](Call& c) { c.query_tensor.strides[0] = (INT64_MAX - 3 * 8 - 7) / 3; },
       PAGEFILL_INVALID_ARGUMENT, "query"},
      {"query_starts that decrease",
       [](Call& c) {
         c.query_starts_data = {0, 5, 4};
       },
       PAGEFILL_INVALID_ARGUMENT, "query_starts"},
      {"a context_len beyond the table",
       [](Call& c) {
         c.context_lens_data = {7, 2};
       },
       PAGEFILL_INVALID_ARGUMENT, "context_lens"},
      {"a needed entry of -1", [](Call& c) { c.page_table_data[0] = -1; },
       PAGEFILL_INVALID_ARGUMENT, "page_table"},
      {"a needed entry past the cache", [](Call& c) { c.page_table_data[3] = Call::kPages; },
       PAGEFILL_INVALID_ARGUMENT, "page_table"},
      {"a negative kv_start", [](Call& c) { c.kv_start_data[1] = -1; }, PAGEFILL_INVALID_ARGUMENT,
       "kv_start"},
  };
  for (const Row& row : kRows) expect_refused(row);
}

TEST(CApiBadInput, OutputMayNotBeAnInput) {
  Call call;
  call.output = call.query;
  const std::vector<float> before = call.query_data;
  EXPECT_EQ(call.ragged(), PAGEFILL_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(pagefill_last_error_message()).rfind("output: ", 0), 0u);
  EXPECT_EQ(call.query_data, before);
}

TEST(CApiBadInput, AWorkspaceTooSmallOrMisalignedIsRefused) {
  Call call;
  call.context.backend = "cpu";
  size_t size = 0;
  ASSERT_EQ(call.workspace_size(&size), PAGEFILL_OK) << pagefill_last_error_message();
  ASSERT_GT(size, 1u);
  std::vector<std::byte> memory(size + 2 * PAGEFILL_WORKSPACE_ALIGNMENT);
  void* aligned = memory.data();
  size_t space = memory.size();
  ASSERT_NE(std::align(PAGEFILL_WORKSPACE_ALIGNMENT, size, aligned, space), nullptr);

  call.context.workspace = aligned;
  call.context.workspace_size = size - 1;
  EXPECT_EQ(call.ragged(), PAGEFILL_RESOURCE_EXHAUSTED);
  const std::string wanted = "workspace: expected at least " + std::to_string(size) + " bytes";
  EXPECT_EQ(std::string(pagefill_last_error_message()).rfind(wanted, 0), 0u)
      << pagefill_last_error_message();
  EXPECT_TRUE(call.untouched());

  call.context.workspace = static_cast<std::byte*>(aligned) + 1;
  call.context.workspace_size = size;
  EXPECT_EQ(call.ragged(), PAGEFILL_INVALID_ARGUMENT);
  EXPECT_TRUE(call.untouched());

  call.context.workspace = aligned;
  EXPECT_EQ(call.ragged(), PAGEFILL_OK) << pagefill_last_error_message();
  EXPECT_EQ(call.report.workspace_bytes, size);
}

}  // namespace
}  // namespace pagefill::testing
