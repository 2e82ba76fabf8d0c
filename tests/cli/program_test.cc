// The program from outside: exit codes, its one line on stderr, what it writes.
#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "case_file.h"
#include "process.h"
#include "safetensors.h"
#include "small_case.h"
#include "temporary_folder.h"

namespace pagefill::cli {
namespace {

// Exit code 2 and exactly this line.
void expect_wrong_use(const Finished& finished, const std::string& line) {
  EXPECT_EQ(finished.exit_code, 2);
  EXPECT_EQ(finished.err, "pagefill: " + line + "\n");
}

std::string write_case(const TemporaryFolder& folder, const Safetensors& file) {
  const std::string path = folder / "case";
  EXPECT_TRUE(write_safetensors(file, path).ok());
  return path;
}

TEST(Program, HelpAndVersionAreNoErrors) {
  const Finished version = pagefill({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_EQ(version.out.substr(0, 9), "pagefill ");
  EXPECT_EQ(version.err, "");
  for (const char* command : {"demo", "run", "verify", "bench", "info"}) {
    EXPECT_NE(pagefill({"--help"}).out.find(command), std::string::npos) << command;
    const Finished help = pagefill({command, "--help"});
    EXPECT_EQ(help.exit_code, 0);
    EXPECT_NE(help.out.find(std::string("Usage: pagefill ") + command), std::string::npos);
    EXPECT_EQ(help.err, "");
  }
}

TEST(Program, WrongUseIsOneLineThatNamesIt) {
  expect_wrong_use(pagefill({}), "expected a command: demo, run, verify, bench or info");
  expect_wrong_use(pagefill({"serve"}), "The following argument was not expected: serve");
  expect_wrong_use(pagefill({"--verbose"}), "The following argument was not expected: --verbose");
  expect_wrong_use(pagefill({"info", "--verbose"}),
                   "The following argument was not expected: --verbose");
  expect_wrong_use(pagefill({"run", "case", "-o", "out", "--cap", "3"}),
                   "The following arguments were not expected: 3 --cap");
  expect_wrong_use(pagefill({"run", "case"}), "--output is required");
  expect_wrong_use(pagefill({"run", "-o", "out"}), "CASE is required");
  expect_wrong_use(pagefill({"verify"}), "CASE is required");
  expect_wrong_use(pagefill({"run", "case", "-o", "out", "--threads", "two"}),
                   "Could not convert: --threads = two");
  expect_wrong_use(pagefill({"run", "missing\nfile", "-o", "out"}),
                   "missing\\x0afile: cannot be opened: No such file or directory");
}

TEST(Program, AnOutputThatCannotBeWrittenIsAnError) {
  for (const char* argument : {"--help", "--version", "info"}) {
    const std::string command =
        std::string(PAGEFILL_PROGRAM) + " " + argument + " >/dev/full 2>/dev/null";
    EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 2) << argument;
  }
}

TEST(Program, InfoSaysWhatIsChosenAndWhy) {
  const Finished chosen = pagefill({"info"});
  EXPECT_EQ(chosen.exit_code, 0);
  for (const char* word : {"pagefill ", "cpu ", "reference ", "hardware threads", "chosen"}) {
    EXPECT_NE(chosen.out.find(word), std::string::npos) << word;
  }
  const Finished forced = pagefill({"info"}, {.environment = {"PAGEFILL_BACKEND=reference"}});
  EXPECT_NE(forced.out.find("chosen\n  reference"), std::string::npos) << forced.out;
  EXPECT_NE(forced.out.find("PAGEFILL_BACKEND asks for it"), std::string::npos) << forced.out;
  const Finished unknown = pagefill({"info"}, {.environment = {"PAGEFILL_BACKEND=abacus"}});
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_NE(unknown.err.find("PAGEFILL_BACKEND"), std::string::npos) << unknown.err;
  EXPECT_NE(unknown.err.find("abacus"), std::string::npos) << unknown.err;
}

TEST(Run, WritesTheResultOfTheCall) {
  for (const Safetensors& file : {small_sequence(), small_batch(), small_quantised()}) {
    for (const char* backend : {"auto", "cpu", "reference"}) {
      const TemporaryFolder folder;
      const Finished finished = pagefill({"run", write_case(folder, file), "-o", folder / "out",
                                          "--backend", backend, "--threads", "2"});
      EXPECT_EQ(finished.exit_code, 0) << finished.err;
      EXPECT_EQ(finished.err, "");
      const Result<Safetensors> result = read_safetensors(folder / "out");
      ASSERT_TRUE(result.ok()) << result.status().message();
      const Result<State> state = attend(*case_from(file), {.backend = backend, .num_threads = 2});
      ASSERT_TRUE(state.ok()) << state.status().message();
      EXPECT_EQ(result->tensors,
                (std::map<std::string, Tensor>{{"output", state->output}, {"lse", state->lse}}));
    }
  }
}

TEST(Run, UnknownBackendsAndTargetsAreRefusedByName) {
  const TemporaryFolder folder;
  const std::string path = write_case(folder, small_sequence());
  struct Wrong {
    std::vector<std::string> options;
    const char* argument;
    const char* value;
  };
  for (const Wrong& wrong : {Wrong{{"--backend", "abacus"}, "backend", "abacus"},
                             Wrong{{"--cpu-target", "mmx"}, "cpu_target", "mmx"},
                             Wrong{{"--threads", "-1"}, "num_threads", "-1"}}) {
    std::vector<std::string> arguments{"run", path, "-o", folder / "out"};
    arguments.insert(arguments.end(), wrong.options.begin(), wrong.options.end());
    const Finished finished = pagefill(arguments);
    EXPECT_EQ(finished.exit_code, 2);
    EXPECT_EQ(finished.err.find(std::string("pagefill: ") + wrong.argument), 0) << finished.err;
    EXPECT_NE(finished.err.find(wrong.value), std::string::npos) << finished.err;
    EXPECT_FALSE(std::filesystem::exists(folder / "out"));
  }
}

TEST(Run, ABadCaseIsRefusedByNameAndNothingIsWritten) {
  const TemporaryFolder folder;
  Safetensors file = small_sequence();
  file.tensors.at("context_len").elements<int32_t>()[0] = 17;
  Finished finished = pagefill({"run", write_case(folder, file), "-o", folder / "out"});
  EXPECT_EQ(finished.exit_code, 2);
  EXPECT_EQ(finished.err.find("pagefill: context_len: expected at most 16 tokens"), 0)
      << finished.err;

  file = small_sequence();
  file.tensors["context_len"] = Tensor::zeros(DType::kInt64, {1});
  finished = pagefill({"run", write_case(folder, file), "-o", folder / "out"});
  EXPECT_EQ(finished.exit_code, 2);
  EXPECT_EQ(finished.err.find("pagefill: context_len: expected dtype int32, got int64"), 0)
      << finished.err;
  EXPECT_EQ(folder.num_files(), 1);
}

// 2^47 rows of no elements take no bytes in the file; their output would take 2^53.
TEST(Run, AHugeShapeOfNoElementsIsRefusedBeforeItCostsMemory) {
  const TemporaryFolder folder;
  for (const auto& shape : {std::vector<int64_t>{int64_t{1} << 24, 4, 0},
                            std::vector<int64_t>{int64_t{1} << 47, 4, 0}}) {
    Safetensors file = small_sequence();
    file.tensors["query"] = Tensor::zeros(DType::kFloat32, shape);
    const Finished finished = pagefill({"run", write_case(folder, file), "-o", folder / "out"});
    EXPECT_EQ(finished.exit_code, 2);
    EXPECT_TRUE(finished.err.starts_with("pagefill: query: ") ||
                // AddressSanitizer writes a line of its own before.
                finished.err.ends_with("pagefill: output: out of memory\n"))
        << finished.err;
  }
}

TEST(Run, TheOutputAppearsWholeOrNotAtAll) {
  const TemporaryFolder folder;
  const std::string path = write_case(folder, small_sequence());
  expect_wrong_use(pagefill({"run", path, "-o", folder / "missing/out"}),
                   (folder / "missing/out") + ": cannot be written: No such file or directory");
  expect_wrong_use(pagefill({"run", path, "-o", "/dev/full"}),
                   "/dev/full: expected a regular file or a new name");
  std::ofstream(folder / "out") << "old";
  expect_wrong_use(pagefill({"run", path, "-o", folder / "out"}, {.file_size_limit = 1000}),
                   (folder / "out") + ": cannot be written: File too large");
  std::string kept;
  std::ifstream(folder / "out") >> kept;
  EXPECT_EQ(kept, "old");
  EXPECT_EQ(folder.num_files(), 2);
  EXPECT_EQ(pagefill({"run", path, "-o", folder / "out"}).exit_code, 0);
  EXPECT_EQ(folder.num_files(), 2);
}

}  // namespace
}  // namespace pagefill::cli
