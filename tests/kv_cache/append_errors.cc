// What append_kv refuses: by the argument's name, with what was expected and what came, and before it
// writes.
#include <gtest/gtest.h>

#include <span>

#include "append_case.h"

namespace pagefill::testing {
namespace {

struct BadInput {
  const char* argument;  // what the message begins with
  const char* got;       // what it says that came
  void (*spoil)(AppendCase& c);
};

const BadInput kBadInputs[] = {
    {"keys: ", "got none", [](AppendCase& c) { c.keys = {}; }},
    {"keys: ", "int32", [](AppendCase& c) { c.keys.dtype = DType::kInt32; }},
    {"keys: ", "float64", [](AppendCase& c) { c.keys.dtype = DType::kFloat64; }},
    {"keys: ", "[18, 2, 8]", [](AppendCase& c) { c.keys.shape[2] = 8; }},
    {"keys: ", "[18, 3, 16]", [](AppendCase& c) { c.keys.shape[1] = 3; }},
    {"keys: ", "rank 5", [](AppendCase& c) { c.keys.rank = 5; }},
    {"keys: ", "got 2", [](AppendCase& c) { c.keys.strides[2] = 2; }},
    {"keys: ", "-32", [](AppendCase& c) { c.keys.strides[0] = -32; }},
    {"keys: ", "null", [](AppendCase& c) { c.keys.data = nullptr; }},
    {"keys: ", "aligned",
     [](AppendCase& c) { c.keys.data = static_cast<const char*>(c.keys.data) + 2; }},
    {"keys: ", "CUDA", [](AppendCase& c) { c.keys.device.type = DeviceType::kCuda; }},
    {"values: ", "bfloat16", [](AppendCase& c) { c.values.dtype = DType::kBFloat16; }},
    {"values: ", "[17, 2, 24]", [](AppendCase& c) { c.values.shape[0] = 17; }},
    {"values: ", "[18, 2, 16]", [](AppendCase& c) { c.values.shape[2] = 16; }},
    {"key_cache: ", "got none", [](AppendCase& c) { c.key_cache = {}; }},
    {"key_cache: ", "int64", [](AppendCase& c) { c.key_cache.dtype = DType::kInt64; }},
    {"key_cache: ", "got 12", [](AppendCase& c) { c.key_cache.shape[3] = 12; }},
    {"key_cache: ", "got 0", [](AppendCase& c) { c.key_cache.shape[2] = 0; }},
    {"key_cache: ", "CUDA", [](AppendCase& c) { c.key_cache.device.type = DeviceType::kCuda; }},
    {"key_cache: ", "stride 15", [](AppendCase& c) { c.key_cache.strides[2] = 15; }},
    {"value_cache: ", "float16", [](AppendCase& c) { c.value_cache.dtype = DType::kFloat16; }},
    {"value_cache: ", "[2, 21, 4, 24]", [](AppendCase& c) { c.value_cache.shape[2] = 4; }},
    {"value_cache: ", "stride 0", [](AppendCase& c) { c.value_cache.strides[1] = 0; }},
    {"value_cache: ", "overlaps key_cache",
     [](AppendCase& c) { c.value_cache.data = c.key_cache.data; }},
    {"key_cache: ", "overlaps keys", [](AppendCase& c) { c.keys.data = c.key_cache.data; }},
    {"value_cache: ", "overlaps values", [](AppendCase& c) { c.values.data = c.value_cache.data; }},
    {"value_cache: ", "overlaps keys", [](AppendCase& c) { c.keys.data = c.value_cache.data; }},
    {"query_starts: ", "got 1", [](AppendCase& c) { c.query_starts[0] = 1; }},
    {"query_starts: ", "got 4", [](AppendCase& c) { c.query_starts[2] = 4; }},
    {"query_starts: ", "got 19", [](AppendCase& c) { c.query_starts[5] = 19; }},
    {"query_starts: ", "[5]", [](AppendCase& c) { c.query_starts.pop_back(); }},
    {"context_lens: ", "got -1", [](AppendCase& c) { c.context_lens[1] = -1; }},
    {"context_lens: ", "got 4 in sequence 0", [](AppendCase& c) { c.context_lens[0] = 4; }},
    {"context_lens: ", "got 22 in sequence 2", [](AppendCase& c) { c.context_lens[2] = 22; }},
    {"kv_start: ", "got -1", [](AppendCase& c) { c.kv_start[1] = -1; }},
    {"kv_start: ", "got 13 in sequence 3", [](AppendCase& c) { c.kv_start[3] = 13; }},
    {"kv_start: ", "[4]", [](AppendCase& c) { c.kv_start.pop_back(); }},
    {"page_table: ", "got -1 in entry 1 of sequence 0", [](AppendCase& c) { c.pages[1] = -1; }},
    {"page_table: ", "got 21 in entry 0 of sequence 0", [](AppendCase& c) { c.pages[0] = 21; }},
    {"page_table: ", "[4, 7]", [](AppendCase& c) { c.page_table.shape[0] = 4; }},
    {"page_table: ", "float32", [](AppendCase& c) { c.page_table.dtype = DType::kFloat32; }},
};

constexpr float kSomeScales[64] = {};

// With an int8 cache and scales per slot, [2, 21, 3]: given here, and to be chosen below.
const BadInput kBadScales[] = {
    {"key_scale: ", "[3]",
     [](AppendCase& c) { c.options.key_scale = TensorView(kSomeScales, {3}); }},
    {"key_scale: ", "[2, 21, 4]", [](AppendCase& c) { c.options.key_scale.shape[2] = 4; }},
    {"value_scale: ", "float64",
     [](AppendCase& c) { c.options.value_scale.dtype = DType::kFloat64; }},
    {"value_scale: ", "null", [](AppendCase& c) { c.options.value_scale.data = nullptr; }},
    {"key_scale: ", "not quantised, got [2, 21, 3]",
     [](AppendCase& c) { c.key_cache.dtype = c.value_cache.dtype = DType::kFloat32; }},
    {"key_cache: ", "overlaps key_scale",
     [](AppendCase& c) { c.options.key_scale.data = c.key_cache.data; }},
    {"value_cache: ", "overlaps value_scale",
     [](AppendCase& c) { c.options.value_scale.data = c.value_cache.data; }},
    {"keys: ", "int8", [](AppendCase& c) { c.keys.dtype = c.values.dtype = DType::kInt8; }},
};

const BadInput kBadChosenScales[] = {
    {"chosen_key_scale: ", "[1]",
     [](AppendCase& c) {
       c.options.chosen_key_scale.rank = 1;
       c.options.chosen_key_scale.shape[0] = 1;
     }},
    {"chosen_value_scale: ", "[2, 21, 4]",
     [](AppendCase& c) { c.options.chosen_value_scale.shape[2] = 4; }},
    {"chosen_value_scale: ", "bfloat16",
     [](AppendCase& c) { c.options.chosen_value_scale.dtype = DType::kBFloat16; }},
    {"chosen_key_scale: ", "null",
     [](AppendCase& c) { c.options.chosen_key_scale.data = nullptr; }},
    {"chosen_key_scale: ", "stride 0",
     [](AppendCase& c) { c.options.chosen_key_scale.strides[0] = 0; }},
    {"chosen_key_scale: ", "not quantised, got [2, 21, 3]",
     [](AppendCase& c) { c.key_cache.dtype = c.value_cache.dtype = DType::kFloat32; }},
    {"key_scale: ", "expected none beside chosen_key_scale, got [1]",
     [](AppendCase& c) { c.options.key_scale = TensorView(kSomeScales, {1}); }},
    {"value_scale: ", "expected none beside chosen_value_scale, got [2]",
     [](AppendCase& c) { c.options.value_scale = TensorView(kSomeScales, {2}); }},
    {"chosen_value_scale: ", "overlaps chosen_key_scale",
     [](AppendCase& c) { c.options.chosen_value_scale.data = c.options.chosen_key_scale.data; }},
    {"chosen_key_scale: ", "overlaps key_cache",
     [](AppendCase& c) { c.options.chosen_key_scale.data = c.key_cache.data; }},
    {"chosen_value_scale: ", "overlaps keys",
     [](AppendCase& c) { c.keys.data = c.options.chosen_value_scale.data; }},
};

void expect_refused(std::span<const BadInput> table, const AppendGeometry& geometry) {
  for (const BadInput& bad : table) {
    AppendCase append(geometry);
    bad.spoil(append);
    const Status status = append.call();
    ASSERT_FALSE(status.ok()) << bad.argument << bad.got << ": accepted";
    EXPECT_EQ(status.message().rfind(bad.argument, 0), 0u) << status.message();
    EXPECT_NE(status.message().find("expected"), std::string::npos) << status.message();
    EXPECT_NE(status.message().find(bad.got), std::string::npos)
        << status.message() << ": " << bad.got;
    append.expect_untouched();
  }
}

TEST(AppendKv, NamesWhatIsWrongAndWritesNothing) { expect_refused(kBadInputs, {}); }

TEST(AppendKv, NamesWhatIsWrongWithScalesAndWritesNothing) {
  expect_refused(kBadScales, {.cache_dtype = DType::kInt8, .scale = ScalePer::kSlot});
  expect_refused(kBadChosenScales, {.cache_dtype = DType::kInt8, .choose_scales = true});
}

TEST(AppendKv, NamesACudaTensorAsUnsupported) {
  AppendCase append({});
  append.value_cache.device.type = DeviceType::kCuda;
  EXPECT_EQ(append.call().code(), StatusCode::kUnsupported);
}

TEST(AppendKv, RefusesInterleavedCachesThatTouch) {
  for (CacheOrder order : {CacheOrder::kInterleavedSlots, CacheOrder::kInterleavedPages}) {
    for (int64_t elements : {-8, 8}) {  // half a row off
      AppendCase moved({.v_head_dim = 16, .cache_order = order});
      moved.value_cache.data = static_cast<float*>(moved.value_cache.data) + elements;
      const Status status = moved.call();
      EXPECT_EQ(status.message(),
                "value_cache: expected memory of its own, got memory that overlaps key_cache");
      moved.expect_untouched();
    }
  }
}

TEST(AppendKv, NamesWhatIsWrongWithTheContext) {
  const AppendCase append({});
  EXPECT_EQ(append.call({.num_threads = -1}).message(),
            "num_threads: expected 0 (all) to 1024, got -1");
  EXPECT_EQ(append.call({.backend = "abacus"}).message().rfind("backend: ", 0), 0u);
  append.expect_untouched();
}

}  // namespace
}  // namespace pagefill::testing
