// PAGEFILL_BACKEND, PAGEFILL_CPU_TARGET and PAGEFILL_NUM_THREADS force a choice, and what was
// forced is what ran: the code that ran says its own name.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "support/oracle.h"
#include "support/run.h"
#include "support/tolerance.h"

namespace pagefill::testing {
namespace {

struct Variable {
  const char* name;
  std::string value;
};

// pagefill's variables, these and no others; afterwards as they were.
class Environment {
 public:
  explicit Environment(const std::vector<Variable>& variables) {
    for (const char* name : kNames) {
      if (const char* value = std::getenv(name)) before_.push_back({name, value});
      unsetenv(name);
    }
    for (const Variable& v : variables) setenv(v.name, v.value.c_str(), 1);
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;
  ~Environment() {
    for (const char* name : kNames) unsetenv(name);
    for (const Variable& v : before_) setenv(v.name, v.value.c_str(), 1);
  }

 private:
  static constexpr const char* kNames[] = {"PAGEFILL_BACKEND", "PAGEFILL_CPU_TARGET",
                                           "PAGEFILL_NUM_THREADS"};
  std::vector<Variable> before_;
};

// Enough work for a few threads.
Status attend(const Context& context) {
  const Problem problem = random_problem({.sequences = {{40, 300}}, .num_kv_heads = 4});
  const Chunk chunks[] = {{0, 0, 40}};
  const Arguments a = lay_out(problem, chunks, {});
  return ragged_page_attention(a.query, a.key_cache, a.value_cache, a.query_starts, a.context_lens,
                               a.page_table, a.options, a.output, context);
}

CallReport ran(Context context = {}) {
  CallReport report;
  context.report = &report;
  const Status status = attend(context);
  EXPECT_TRUE(status.ok()) << status.message();
  return report;
}

void expect_error(const Status& status, StatusCode code, const std::string& variable,
                  const std::string& value) {
  EXPECT_EQ(status.code(), code) << status.message();
  EXPECT_TRUE(status.message().starts_with(variable + ":")) << status.message();
  EXPECT_NE(status.message().find(value), std::string::npos) << status.message();
}

TEST(Choice, EveryBackendAndTargetCanBeForcedByEnvironment) {
  for (const Where& where : host_targets()) {
    SCOPED_TRACE(describe(where));
    std::vector<Variable> variables = {{"PAGEFILL_BACKEND", where.backend}};
    if (where.target != "auto") variables.push_back({"PAGEFILL_CPU_TARGET", where.target});
    const Environment environment(variables);
    const CallReport report = ran();
    EXPECT_EQ(report.backend, where.backend);
    if (where.target != "auto") {
      EXPECT_EQ(report.target, where.target);
    }
    const Result<BackendChoice> choice = choose_backend();
    ASSERT_TRUE(choice.ok());
    EXPECT_EQ(choice->backend, where.backend);
    EXPECT_NE(choice->reason.find("PAGEFILL_BACKEND"), std::string::npos) << choice->reason;
  }
}

TEST(Choice, EveryBackendAndTargetCanBeForcedByTheContext) {
  const Environment environment(std::vector<Variable>{{"PAGEFILL_BACKEND", "reference"}});
  for (const Where& where : host_targets()) {
    SCOPED_TRACE(describe(where));
    Context context;
    context.backend = where.backend;
    context.cpu_target = where.target;
    const CallReport report = ran(context);
    EXPECT_EQ(report.backend, where.backend) << "the caller's word is above the environment's";
    if (where.target != "auto") {
      EXPECT_EQ(report.target, where.target);
    }
  }
}

TEST(Choice, TargetsThatAreForcedAreDifferentCode) {
  // Two instruction sets with other vector lengths, or without a fused multiply-add, differ in some
  // bit.
  const Problem problem = random_problem({.sequences = {{20, 700}}, .head_dim = 64});
  const Results reference = run(problem, {}, {"reference", "auto", 1});
  for (const Where& where : cpu_targets()) {
    EXPECT_NE(difference(reference, run(problem, {}, where)), std::nullopt)
        << describe(where) << " has the reference's bits: did it run?";
  }
}

TEST(Choice, WithoutAWishTheBestRuns) {
  const Environment environment(std::vector<Variable>{});
  const BackendInfo best = list_backends().front();
  EXPECT_EQ(best.name, "cpu");
  const CallReport report = ran();
  EXPECT_EQ(report.backend, best.name);
  for (const TargetInfo& target : best.targets) {
    if (!target.available) continue;
    EXPECT_EQ(report.target, target.name) << "the first that is available";
    break;
  }
}

TEST(Choice, TheEnvironmentSetsTheNumberOfThreads) {
  Context context;
  for (int threads : {1, 2, 3}) {
    const Environment environment(
        std::vector<Variable>{{"PAGEFILL_NUM_THREADS", std::to_string(threads)}});
    const Result<BackendChoice> choice = choose_backend();
    ASSERT_TRUE(choice.ok()) << choice.status().message();
    EXPECT_EQ(choice->num_threads, threads);
    EXPECT_EQ(ran().num_threads, threads);
    context.num_threads = 4 - threads;
    EXPECT_EQ(ran(context).num_threads, 4 - threads)
        << "the caller's word is above the environment's";
  }
}

TEST(Choice, UnknownValuesOfTheEnvironmentAreErrors) {
  const Variable unknown[] = {
      {"PAGEFILL_BACKEND", "tpu"},     {"PAGEFILL_BACKEND", ""},
      {"PAGEFILL_BACKEND", "CPU"},     {"PAGEFILL_CPU_TARGET", "mmx"},
      {"PAGEFILL_CPU_TARGET", ""},     {"PAGEFILL_NUM_THREADS", "0"},
      {"PAGEFILL_NUM_THREADS", "-2"},  {"PAGEFILL_NUM_THREADS", "two"},
      {"PAGEFILL_NUM_THREADS", "2x"},  {"PAGEFILL_NUM_THREADS", ""},
      {"PAGEFILL_NUM_THREADS", "1e3"}, {"PAGEFILL_NUM_THREADS", "99999999999999999999"},
      {"PAGEFILL_NUM_THREADS", " 2"},
  };
  for (const auto& [variable, value] : unknown) {
    const Environment environment(std::vector<Variable>{{variable, value}});
    expect_error(attend({}), StatusCode::kInvalidArgument, variable, value);
    expect_error(choose_backend().status(), StatusCode::kInvalidArgument, variable, value);
  }
}

TEST(Choice, AMisspeltTargetIsAnErrorWhateverTheBackend) {
  const Environment environment(
      std::vector<Variable>{{"PAGEFILL_BACKEND", "reference"}, {"PAGEFILL_CPU_TARGET", "mmx"}});
  expect_error(attend({}), StatusCode::kInvalidArgument, "PAGEFILL_CPU_TARGET", "mmx");
}

TEST(Choice, ATargetThatThisMachineLacksIsAnError) {
  int lacking = 0;
  for (const BackendInfo& backend : list_backends()) {
    for (const TargetInfo& target : backend.targets) {
      if (target.available) continue;
      ++lacking;
      const Environment environment(std::vector<Variable>{{"PAGEFILL_CPU_TARGET", target.name}});
      expect_error(attend({}), StatusCode::kUnavailable, "PAGEFILL_CPU_TARGET", target.name);
    }
  }
  if (lacking == 0) GTEST_SKIP() << "this machine has every target that was compiled";
}

}  // namespace
}  // namespace pagefill::testing
