// Promise 3: never something else in silence. Every option changes the result; what is not
// supported is refused by name.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>

#include "support/option_table.h"
#include "support/oracle.h"
#include "support/run.h"
#include "support/tolerance.h"

namespace pagefill::testing {
namespace {

TEST(Options, EachCaseOfEachOptionChangesTheResult) {
  const Problem plain = random_problem({.sequences = {{20, 150}, {1, 90}}});
  for (const Where& where : all_targets()) {
    for (const OptionCase& option : kOptionTable) {
      Problem problem = plain;
      option.apply(problem);
      Problem before = plain;  // in the same cache, where the option has to do with its dtype
      if (problem.cache_dtype != plain.cache_dtype) quantise_cache(before, problem.cache_dtype);
      const Results without = run(before, {}, where);
      EXPECT_NE(difference(without, run(problem, {}, where)), std::nullopt)
          << describe(where) << ": " << option.name << " is accepted and ignored";
    }
  }
}

TEST(Options, ADefaultThatIsSpelledOutChangesNothing) {
  const Problem plain = random_problem({.head_dim = 64});
  Problem spelled = plain;
  spelled.options.softmax_scale = 0.125f;
  spelled.options.sliding_window = 150;  // the whole context
  spelled.options.mask_value = kDefaultMaskValue;
  spelled.kv_start_given = true;
  for (const Where& where : all_targets()) {
    EXPECT_EQ(difference(run(plain, {}, where), run(spelled, {}, where)), std::nullopt)
        << describe(where);
  }
}

TEST(Options, AMaskValueOfMinusTenThousandExcludesAndOneAboveCounts) {
  Problem problem = random_problem({});
  const Problem plain = problem;
  for (const Where& where : all_targets()) {
    for (float excludes : {-1e4f, -1e5f, -std::numeric_limits<float>::infinity()}) {
      problem.options.mask_value = excludes;
      EXPECT_EQ(difference(run(plain, {}, where), run(problem, {}, where)), std::nullopt)
          << describe(where) << ", mask_value " << excludes;
    }
    // With mask_value 0 the mask does nothing: the chunk's first row has the whole context.
    problem.options.mask_value = 0;
    expect_close(run(problem, {}, where), oracle(problem), problem);
    EXPECT_NE(difference(run(plain, {}, where), run(problem, {}, where)), std::nullopt);
  }
}

TEST(Options, LseIsWrittenOnlyWhereAskedForAndOutputDoesNotDependOnIt) {
  const Problem problem = random_problem({});
  const Chunk chunks[] = {{0, 0, 20}};
  for (const Where& where : all_targets()) {
    Arguments with = lay_out(problem, chunks, {});
    Arguments without = lay_out(problem, chunks, {});
    without.output.lse = {};
    ASSERT_TRUE(call(with, where).ok());
    ASSERT_TRUE(call(without, where).ok());
    EXPECT_EQ(std::memcmp(with.output_memory.data(), without.output_memory.data(),
                          static_cast<size_t>(with.output_memory.size())),
              0)
        << describe(where);
    for (int64_t i = 0; i < without.lse_memory.size(); ++i) {
      ASSERT_EQ(without.lse_memory.data()[i], kCanary);
    }
  }
}

TEST(Options, WhatIsNotSupportedIsRefusedByName) {
  struct Refused {
    const char* argument;
    const char* named;  // what came, as the message has to call it
    void (*ask)(Arguments& arguments);
  };
  const Refused table[] = {
      {"query", "float64", [](Arguments& a) { a.query.dtype = DType::kFloat64; }},
      {"query", "int64", [](Arguments& a) { a.query.dtype = DType::kInt64; }},
      {"query", "int32", [](Arguments& a) { a.query.dtype = DType::kInt32; }},
      {"query", "int8", [](Arguments& a) { a.query.dtype = DType::kInt8; }},
      {"query", "float8_e4m3fn", [](Arguments& a) { a.query.dtype = DType::kFloat8E4M3; }},
      {"value_cache", "float8_e5m2",
       [](Arguments& a) {
         a.key_cache.dtype = DType::kFloat8E4M3;
         a.value_cache.dtype = DType::kFloat8E5M2;
       }},
      {"key_cache", "float64", [](Arguments& a) { a.key_cache.dtype = DType::kFloat64; }},
      {"key_cache", "int32", [](Arguments& a) { a.key_cache.dtype = DType::kInt32; }},
      {"value_cache", "bfloat16", [](Arguments& a) { a.value_cache.dtype = DType::kBFloat16; }},
      {"query", "CUDA", [](Arguments& a) { a.query.device.type = DeviceType::kCuda; }},
      {"value_cache", "CUDA", [](Arguments& a) { a.value_cache.device.type = DeviceType::kCuda; }},
      {"query", "12", [](Arguments& a) { a.query.shape[2] = 12; }},
      {"query", "520",
       [](Arguments& a) {
         a.query.shape[2] = a.key_cache.shape[3] = 520;
         a.query.strides = {4 * 520, 520, 1, 0};
       }},
      {"value_cache", "4", [](Arguments& a) { a.value_cache.shape[3] = 4; }},
      {"context_lens", "int64", [](Arguments& a) { a.context_lens.dtype = DType::kInt64; }},
      {"page_table", "int64", [](Arguments& a) { a.page_table.dtype = DType::kInt64; }},
      {"output", "bfloat16", [](Arguments& a) { a.output.output.dtype = DType::kBFloat16; }},
      {"lse", "float64", [](Arguments& a) { a.output.lse.dtype = DType::kFloat64; }},
  };
  const Problem problem = random_problem({});
  const Chunk chunks[] = {{0, 0, 20}};
  for (const Refused& refused : table) {
    Arguments arguments = lay_out(problem, chunks, {});
    refused.ask(arguments);
    const Status status = call(arguments, {});
    ASSERT_FALSE(status.ok()) << refused.argument << " " << refused.named;
    EXPECT_EQ(status.message().find(std::string(refused.argument) + ":"), 0u) << status.message();
    EXPECT_NE(status.message().find(refused.named), std::string::npos) << status.message();
  }
}

TEST(Options, ASoftCapOfAnySizeIsThatOfTheFormula) {
  // From scores far above the cap to scores so far below that it changes nothing, of both signs.
  for (DType dtype : kFloatDTypes) {
    for (int64_t num_rows : {1, 20}) {
      Problem problem = random_problem({.sequences = {{num_rows, 140}},
                                        .head_dim = 64,
                                        .query_dtype = dtype,
                                        .cache_dtype = dtype});
      for (float cap : {1e-6f, 0.25f, 3.0f, 30.0f, 300.0f, 1e5f, 1e20f}) {
        for (float scale : {0.125f, -0.125f, 1e-7f, 2.0f, 0.0f}) {
          SCOPED_TRACE("cap " + std::to_string(cap) + ", scale " + std::to_string(scale));
          problem.options.attn_logits_soft_cap = cap;
          problem.options.softmax_scale = scale;
          const Expected expected = oracle(problem);
          for (const Where& where : all_targets()) {
            SCOPED_TRACE(describe(where));
            expect_close(run(problem, {}, where), expected, problem);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
