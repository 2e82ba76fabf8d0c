// pagefill verify: every backend and target of this machine, held to its promises on given cases.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "accuracy.h"
#include "case_file.h"
#include "commands.h"
#include "expected.h"
#include "pagefill/backend.h"
#include "proof.h"
#include "terminal.h"

namespace pagefill::cli {
namespace {

// A backend with one of its instruction sets, where it has a choice of them.
struct Candidate {
  std::string backend;
  std::string target;
  Weights weights = Weights::kFloat32;

  std::string name() const { return target.empty() ? backend : backend + " " + target; }

  Context context() const {
    Context context;
    context.backend = backend;
    if (!target.empty()) context.cpu_target = target;
    return context;
  }
};

std::vector<Candidate> available_candidates() {
  std::vector<Candidate> candidates;
  for (const BackendInfo& backend : list_backends()) {
    if (!backend.available) continue;
    const Weights of_backend = backend.half_weights ? Weights::kHalfBackend : Weights::kFloat32;
    if (backend.targets.empty()) candidates.push_back({backend.name, "", of_backend});
    for (const TargetInfo& target : backend.targets) {
      if (!target.available) continue;
      const bool rounds = target.bfloat16_weights;
      candidates.push_back(
          {backend.name, target.name, rounds ? Weights::kBFloat16Target : of_backend});
    }
  }
  return candidates;
}

struct Outcome {
  Accuracy accuracy;
  Proof unused_memory;
  Proof invariance;
  std::string wrong_code_ran;  // empty: what was asked for
  bool holds() const {
    return accuracy.failure.empty() && unused_memory.holds() && invariance.holds() &&
           wrong_code_ran.empty();
  }
};

Result<Outcome> examine(const Case& c, const Expected& expected, const Candidate& candidate,
                        const OnVariant& on_variant) {
  CallReport report;
  Context context = candidate.context();
  context.report = &report;
  on_variant("as it is");
  const Result<State> state = attend(c, context);
  if (!state.ok()) return state.status();

  Outcome outcome;
  if (report.backend != candidate.backend ||
      (!candidate.target.empty() && report.target != candidate.target)) {
    outcome.wrong_code_ran = fmt::format("{} {} ran instead", report.backend, report.target);
  }
  outcome.accuracy = measure_accuracy(c.batch(), *state, expected, candidate.weights);
  const Claim claim{c, *state, context, on_variant};
  Result<Proof> unused_memory = prove_unused_memory_is_unread(claim);
  if (!unused_memory.ok()) return unused_memory.status();
  outcome.unused_memory = std::move(*unused_memory);
  Result<Proof> invariance = prove_invariance(claim);
  if (!invariance.ok()) return invariance.status();
  outcome.invariance = std::move(*invariance);
  return outcome;
}

// Takes the file's expectation where it has one; it must have the result's shape.
Status take_expected(const char* name, const std::optional<Tensor>& given, const Tensor& result,
                     Tensor& expected) {
  if (!given) return {};
  if (given->dtype != DType::kFloat64 || given->shape != result.shape) {
    const Tensor model{DType::kFloat64, result.shape, {}};
    return Status(StatusCode::kInvalidArgument,
                  fmt::format("{}: expected {}, got {}", name, describe(model), describe(*given)));
  }
  expected = *given;
  return {};
}

// The file's own expectations, and the formula's where it has none. The library has accepted the case.
Result<Expected> expectations(const Case& c, const State& state) {
  const bool file_has_both = c.expected_f64 && c.expected_lse_f64;
  Expected expected = file_has_both ? Expected{} : expected_in_float64(c.batch());
  if (Status s = take_expected("expected_f64", c.expected_f64, state.output, expected.output);
      !s.ok()) {
    return s;
  }
  if (Status s = take_expected("expected_lse_f64", c.expected_lse_f64, state.lse, expected.lse);
      !s.ok()) {
    return s;
  }
  if (c.expected_f64)
    expected.score_size = {};  // judged by the plain tolerance, as golden cases are
  return expected;
}

std::string case_name(const std::string& path) {
  return printable(std::filesystem::path(path).stem().string());
}

// The table on stdout, a line a case, backend and target; what fails is told below its line.
class Table {
 public:
  explicit Table(const std::vector<std::string>& paths) {
    for (const std::string& path : paths) width_ = std::max(width_, case_name(path).size());
    fmt::print("{:<{}}  {:<9}  {:<11}  {:>9}  {:>9}  {:>9}  {:<13}  {}\n", "case", width_,
               "backend", "target", "error", "tolerance", "lse error", "unused memory",
               "invariance");
  }

  void print(const std::string& name, const Candidate& candidate, const Outcome& outcome) {
    fmt::print("{:<{}}  {:<9}  {:<11}  {:>9.2e}  {:>9.2e}  {:>9.2e}  {:<13}  {}\n", name, width_,
               candidate.backend, candidate.target.empty() ? "-" : candidate.target,
               outcome.accuracy.error, outcome.accuracy.tolerance, outcome.accuracy.lse_error,
               verdict(outcome.unused_memory), verdict(outcome.invariance));
    for (const std::string& failure : {outcome.wrong_code_ran, outcome.accuracy.failure,
                                       outcome.unused_memory.failure, outcome.invariance.failure}) {
      if (!failure.empty()) fmt::print("    FAILED {}\n", failure);
    }
    std::fflush(stdout);
  }

  void print_notes(const Case& c) {
    if (!c.expected_f64 || !c.expected_lse_f64) {
      fmt::print("    {} by the formula in float64: the file has none\n",
                 c.expected_f64       ? "lse judged"
                 : c.expected_lse_f64 ? "output judged"
                                      : "judged");
    }
    if (c.batch().masked_keys_count()) {
      fmt::print(
          "    chunks not cut: with mask_value above -1e4 a chunk's end decides which masked "
          "keys there are\n");
    }
  }

 private:
  static std::string verdict(const Proof& proof) {
    return fmt::format("{} ({})", proof.holds() ? "ok" : "FAILED", proof.num_variants);
  }

  size_t width_ = 4;
};

int verify(const std::vector<std::string>& paths) {
  const std::vector<Candidate> candidates = available_candidates();
  Table table(paths);
  Progress progress;
  int num_lines = 0, num_failed = 0;
  for (const std::string& path : paths) {
    const auto bad_case = [&](const Status& status) {
      progress.clear();
      return wrong_use(fmt::format("{}: {}", path, status.message()));
    };
    const Result<Case> c = read_case(path);
    if (!c.ok()) return wrong_use(c.status().message());
    const std::string name = case_name(path);
    progress.show(fmt::format("{}: expectations", name));
    // The first call checks the arguments: nothing here looks at the case before the library has.
    const Result<State> state = attend(*c, {});
    if (!state.ok()) return bad_case(state.status());
    const Result<Expected> expected = expectations(*c, *state);
    if (!expected.ok()) return bad_case(expected.status());

    for (const Candidate& candidate : candidates) {
      const auto on_variant = [&](std::string_view variant) {
        progress.show(fmt::format("{}: {}: {}", name, candidate.name(), variant));
      };
      const Result<Outcome> outcome = examine(*c, *expected, candidate, on_variant);
      if (!outcome.ok()) return bad_case(outcome.status());
      progress.clear();
      table.print(name, candidate, *outcome);
      ++num_lines;
      if (!outcome->holds()) ++num_failed;
    }
    table.print_notes(*c);
  }
  if (num_failed > 0) {
    fmt::print("\n{} of {} lines FAILED\n", num_failed, num_lines);
    return kExitCheckFailed;
  }
  fmt::print("\n{} lines, all hold\n", num_lines);
  return kExitDone;
}

}  // namespace

void add_verify_command(CLI::App& app, int& exit_code) {
  auto paths = std::make_shared<std::vector<std::string>>();
  CLI::App* command = app.add_subcommand(
      "verify", "Hold every backend of this machine to cases: accuracy, unused memory, invariance");
  command->add_option("CASE", *paths, "case files")->required();
  command->callback([paths, &exit_code] { exit_code = verify(*paths); });
}

}  // namespace pagefill::cli
