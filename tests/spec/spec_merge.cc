// merge_attention_states: attention over two disjoint sets of keys is attention over their union. The
// algebra of the merge itself is in tests/kv_cache.
#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "support/oracle.h"
#include "support/run.h"
#include "support/shards.h"
#include "support/tolerance.h"

namespace pagefill::testing {
namespace {

TEST(Merge, OfTwoShardsOfTheContextIsTheWhole) {
  for (DType dtype : kFloatDTypes) {
    Problem problem = random_problem({.sequences = {{1, 150}, {1, 1300}, {1, 70}},
                                      .num_q_heads = 6,
                                      .query_dtype = dtype,
                                      .cache_dtype = dtype});
    for (bool with_sinks : {false, true}) {
      if (with_sinks) add_sinks(problem);
      const Expected expected = oracle(problem);
      for (int64_t split : {1, 37, 64, 69}) {
        const Shards shards = split_context(problem, split);
        for (const Where& where : all_targets()) {
          SCOPED_TRACE(describe(where) + ", split at " + std::to_string(split));
          Results merged = run(shards.early, {}, where);
          const Status status = merge(merged, run(shards.late, {}, where), merged);
          ASSERT_TRUE(status.ok()) << status.message();
          EXPECT_EQ(discrepancy(merged, expected, problem, 2), std::nullopt);
        }
      }
    }
  }
}

TEST(Merge, ErrorsAreNamed) {
  struct Call {
    TensorView output_a, lse_a, output_b, lse_b;
    AttentionOutput merged{MutableTensorView()};
  };
  struct BadInput {
    const char* argument;
    const char* got;
    void (*spoil)(Call& call);
  };
  const BadInput table[] = {
      {"output_a", "", [](Call& c) { c.output_a = {}; }},
      {"output_a", "int32", [](Call& c) { c.output_a.dtype = DType::kInt32; }},
      {"output_b", "[20, 4, 24]", [](Call& c) { c.output_b.shape[2] = 24; }},
      {"output_b", "bfloat16", [](Call& c) { c.output_b.dtype = DType::kBFloat16; }},
      {"output_b", "2", [](Call& c) { c.output_b.strides[2] = 2; }},
      {"lse_a", "", [](Call& c) { c.lse_a = {}; }},
      {"lse_a", "null", [](Call& c) { c.lse_a.data = nullptr; }},
      {"lse_b", "[20, 3]", [](Call& c) { c.lse_b.shape[1] = 3; }},
      {"lse_b", "float16", [](Call& c) { c.lse_b.dtype = DType::kFloat16; }},
      {"output", "", [](Call& c) { c.merged.output = {}; }},
      {"output", "[19, 4, 32]", [](Call& c) { c.merged.output.shape[0] = 19; }},
      {"output", "float16", [](Call& c) { c.merged.output.dtype = DType::kFloat16; }},
      {"output", "output_a",
       [](Call& c) {
         c.merged.output.data = static_cast<float*>(const_cast<void*>(c.output_a.data)) + 32;
       }},
      {"lse", "[21, 4]", [](Call& c) { c.merged.lse.shape[0] = 21; }},
      {"lse", "output_b", [](Call& c) { c.merged.lse.data = const_cast<void*>(c.output_b.data); }},
  };
  const Results a = run(random_problem({.seed = 1})), b = run(random_problem({.seed = 2}));
  for (const BadInput& bad : table) {
    Results merged = a;
    Call c{output_view(a),
           lse_view(a),
           output_view(b),
           lse_view(b),
           {output_view(merged), lse_view(merged)}};
    bad.spoil(c);
    const Status status =
        merge_attention_states(c.output_a, c.lse_a, c.output_b, c.lse_b, c.merged);
    ASSERT_FALSE(status.ok()) << bad.argument << ", " << bad.got << ": accepted";
    EXPECT_TRUE(status.message().find(bad.argument) != std::string::npos) << status.message();
    EXPECT_TRUE(status.message().find("expected") != std::string::npos) << status.message();
    EXPECT_TRUE(status.message().find("got") != std::string::npos) << status.message();
    EXPECT_TRUE(status.message().find(bad.got) != std::string::npos) << status.message();
    EXPECT_EQ(difference(a, merged), std::nullopt) << status.message() << ": wrote";
  }
}

}  // namespace
}  // namespace pagefill::testing
