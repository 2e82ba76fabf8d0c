// Promise 7 for the scales of quantised caches.
#include <gtest/gtest.h>

#include "bad_input.h"

namespace pagefill::testing {
namespace {

const float kSomeScales[64] = {};

// A call with an int8 cache and scales per slot, [2, 13, 16].
const BadInput kBadScales[] = {
    {"key_scale", "[3]",
     [](Call& c) { c.arguments.options.key_scale = TensorView(kSomeScales, {3}); }},
    {"key_scale", "[]",
     [](Call& c) { c.arguments.options.key_scale = TensorView(kSomeScales, {}); }},
    {"key_scale", "[2, 13]", [](Call& c) { c.arguments.options.key_scale.rank = 2; }},
    {"key_scale", "[2, 13, 15]", [](Call& c) { c.arguments.options.key_scale.shape[2] = 15; }},
    {"key_scale", "[2, 13, 16, 1]",
     [](Call& c) {
       c.arguments.options.key_scale.rank = 4, c.arguments.options.key_scale.shape[3] = 1;
     }},
    {"key_scale", "float64",
     [](Call& c) { c.arguments.options.key_scale.dtype = DType::kFloat64; }},
    {"key_scale", "null", [](Call& c) { c.arguments.options.key_scale.data = nullptr; }},
    {"key_scale", "-1", [](Call& c) { c.arguments.options.key_scale.strides[2] = -1; }},
    {"key_scale", "", [](Call& c) { c.arguments.options.key_scale.strides[1] = kHuge; }},
    {"key_scale", "",
     [](Call& c) {
       c.arguments.options.key_scale.data =
           static_cast<const char*>(c.arguments.options.key_scale.data) + 2;
     }},
    {"key_scale", "CUDA",
     [](Call& c) {
       c.arguments.options.key_scale.device = {DeviceType::kCuda, 0};
     },
     StatusCode::kUnsupported},
    {"value_scale", "[1, 13, 16]", [](Call& c) { c.arguments.options.value_scale.shape[0] = 1; }},
    {"value_scale", "[2, 12, 16]", [](Call& c) { c.arguments.options.value_scale.shape[1] = 12; }},
    {"value_scale", "int32", [](Call& c) { c.arguments.options.value_scale = numbers<1, 1>(); }},
    {"value_scale", "null",
     [](Call& c) { c.arguments.options.value_scale = TensorView(nullptr, DType::kFloat32, {1}); }},
    {"output", "key_scale",
     [](Call& c) {
       c.arguments.output.output.data = const_cast<void*>(c.arguments.options.key_scale.data);
     }},
    {"lse", "value_scale",
     [](Call& c) {
       c.arguments.output.lse.data = const_cast<void*>(c.arguments.options.value_scale.data);
     }},
};

// With a float32 cache.
const BadInput kScalesOfNothing[] = {
    {"key_scale", "[1]",
     [](Call& c) { c.arguments.options.key_scale = TensorView(kSomeScales, {1}); }},
    {"value_scale", "[2]",
     [](Call& c) { c.arguments.options.value_scale = TensorView(kSomeScales, {2}); }},
};

TEST(Errors, OfScalesAreNamed) {
  expect_refused(kBadScales,
                 random_problem({.sequences = {{20, 150}, {3, 40}}, .cache_dtype = DType::kInt8}));
  expect_refused(kScalesOfNothing);
}

TEST(Errors, AScaleOfAnUnquantisedCacheIsRefusedInTheseWords) {
  Call c{lay_out(two_sequences(), kTwoChunks, {}), {}};
  c.arguments.options.key_scale = TensorView(kSomeScales, {1});
  EXPECT_EQ(ragged(c).message(),
            "key_scale: expected none, as key_cache is float32 and not quantised, got [1]");
}

}  // namespace
}  // namespace pagefill::testing
