// Every backend on every instruction set against the float64 oracle. The options come from
// kOptionTable, which does not compile when one of them has no case.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/conformance.h"
#include "support/option_table.h"

namespace pagefill::testing {
namespace {

// A chunk that crosses the end of a KV tile (64), a decode token, and a whole prompt.
const std::vector<Lengths> kSequences = {{7, 131}, {1, 80}, {5, 5}};

TEST(Conformance, EveryOptionWithEveryPairOfDtypes) {
  for (DType query : kFloatDTypes) {
    for (DType cache : kCacheDTypes) {
      for (const OptionCase& option : kOptionTable) {
        SCOPED_TRACE(option.name);
        Problem problem = random_problem({.sequences = kSequences,
                                          .num_q_heads = 3,
                                          .num_kv_heads = 1,
                                          .head_dim = 40,
                                          .query_dtype = query,
                                          .cache_dtype = cache});
        option.apply(problem);
        expect_conformance(problem);
      }
    }
  }
}

TEST(Conformance, EveryPairOfOptions) {
  const Problem plain =
      random_problem({.sequences = kSequences, .num_q_heads = 4, .num_kv_heads = 2});
  for (const OptionCase& first : kOptionTable) {
    for (const OptionCase& second : kOptionTable) {
      if (first.option >= second.option) continue;
      SCOPED_TRACE(std::string(first.name) + " and " + second.name);
      Problem problem = plain;
      first.apply(problem);
      second.apply(problem);
      expect_conformance(problem);
    }
  }
}

TEST(Conformance, OptionsOnContextsOfSeveralSegments) {
  const Problem plain = random_problem(
      {.sequences = {{5, 2100}, {1, 1100}}, .num_q_heads = 2, .num_kv_heads = 1, .head_dim = 16});
  for (const OptionCase& option : kOptionTable) {
    SCOPED_TRACE(option.name);
    Problem problem = plain;
    option.apply(problem);
    expect_conformance(problem);
  }
}

// Scores of tens, as trained models have them: one key of a row may outweigh all others.
TEST(Conformance, PeakedScores) {
  for (float factor : {4.0f, 16.0f}) {
    Problem problem = random_problem({.sequences = kSequences, .head_dim = 64});
    for (Sequence& seq : problem.sequences) {
      for (float& x : seq.keys) x *= factor;
    }
    expect_conformance(problem);
  }
}

}  // namespace
}  // namespace pagefill::testing
