// pagefill verify, on golden cases and on what must fail.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "pagefill/backend.h"
#include "process.h"
#include "safetensors.h"
#include "small_case.h"
#include "temporary_folder.h"

namespace pagefill::cli {
namespace {

// Backends and targets that a case is held to.
int num_candidates() {
  int count = 0;
  for (const BackendInfo& backend : list_backends()) {
    if (!backend.available) continue;
    if (backend.targets.empty()) ++count;
    for (const TargetInfo& target : backend.targets) count += target.available;
  }
  return count;
}

std::string write_case(const TemporaryFolder& folder, const Safetensors& file) {
  const std::string path = folder / "case.safetensors";
  EXPECT_TRUE(write_safetensors(file, path).ok());
  return path;
}

class VerifyGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(VerifyGolden, HoldsOnEveryBackendAndTarget) {
  const Finished finished =
      pagefill({"verify", std::string(PAGEFILL_GOLDEN_DIR) + "/" + GetParam() + ".safetensors"});
  EXPECT_EQ(finished.exit_code, 0) << finished.out << finished.err;
  EXPECT_EQ(finished.err, "");  // no progress where stderr is no terminal
  EXPECT_NE(finished.out.find("\n" + std::to_string(num_candidates()) + " lines, all hold\n"),
            std::string::npos)
      << finished.out;
}

std::vector<std::string> golden_cases() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(PAGEFILL_GOLDEN_DIR)) {
    if (entry.path().extension() == ".safetensors") names.push_back(entry.path().stem());
  }
  std::ranges::sort(names);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Golden, VerifyGolden, ::testing::ValuesIn(golden_cases()),
                         [](const auto& golden) { return golden.param; });

// Of the library's own append_kv; expected_f64 by the formula, in Python.
INSTANTIATE_TEST_SUITE_P(Quantised, VerifyGolden,
                         ::testing::Values("quantised/quantised_int8", "quantised/quantised_e4m3"),
                         [](const auto& golden) { return golden.param.substr(10); });

TEST(Verify, ThereAreGoldenCases) { EXPECT_GE(golden_cases().size(), 12u); }

TEST(Verify, CasesWithoutExpectationsAreJudgedByTheFormula) {
  const TemporaryFolder folder;
  for (const auto& [key, text] : {std::pair{"mask_value", "-0.5"}, {"attn_logits_soft_cap", "2"}}) {
    Safetensors file = small_batch();
    file.metadata[key] = text;
    const Finished finished = pagefill({"verify", write_case(folder, file)});
    EXPECT_EQ(finished.exit_code, 0) << finished.out << finished.err;
    EXPECT_NE(finished.out.find("judged by the formula in float64"), std::string::npos);
    EXPECT_EQ(finished.out.find("chunks not cut") != std::string::npos,
              std::string_view(key) == "mask_value");
  }
}

TEST(Verify, AFalsifiedExpectationFailsEveryLine) {
  const TemporaryFolder folder;
  for (const char* name : {"expected_f64", "expected_lse_f64"}) {
    Result<Safetensors> file =
        read_safetensors(std::string(PAGEFILL_GOLDEN_DIR) + "/window_f32.safetensors");
    ASSERT_TRUE(file.ok()) << file.status().message();
    file->tensors.at(name).elements<double>()[5] += 1e-3;
    const Finished finished = pagefill({"verify", write_case(folder, *file)});
    EXPECT_EQ(finished.exit_code, 1);
    const std::string n = std::to_string(num_candidates());
    EXPECT_NE(finished.out.find("\n" + n + " of " + n + " lines FAILED\n"), std::string::npos)
        << finished.out;
  }
}

TEST(Verify, AFalsifiedScaleFailsEveryLine) {
  const TemporaryFolder folder;
  Result<Safetensors> file =
      read_safetensors(std::string(PAGEFILL_GOLDEN_DIR) + "/quantised/quantised_e4m3.safetensors");
  ASSERT_TRUE(file.ok()) << file.status().message();
  file->tensors.at("value_scale").elements<float>()[0] *= 1.01f;
  const Finished finished = pagefill({"verify", write_case(folder, *file)});
  EXPECT_EQ(finished.exit_code, 1) << finished.out << finished.err;
}

TEST(Verify, AnExpectationOfAnotherShapeIsRefusedByName) {
  const TemporaryFolder folder;
  Safetensors file = small_sequence();
  file.tensors["expected_f64"] = Tensor::zeros(DType::kFloat64, {5, 4, 8});
  const std::string path = write_case(folder, file);
  const Finished finished = pagefill({"verify", path});
  EXPECT_EQ(finished.exit_code, 2);
  EXPECT_EQ(
      finished.err,
      "pagefill: " + path + ": expected_f64: expected float64 [5, 4, 16], got float64 [5, 4, 8]\n");
}

TEST(Verify, AFileThatIsNoCaseIsRefusedByName) {
  const TemporaryFolder folder;
  const std::string path = folder / "case";
  std::ofstream(path) << "\x7f"
                      << "ELF, not a case";
  const Finished finished = pagefill({"verify", path});
  EXPECT_EQ(finished.exit_code, 2);
  EXPECT_EQ(finished.err.find("pagefill: " + path + ": header length: expected at most 8 bytes"), 0)
      << finished.err;
}

// Empty chunks, empty contexts, chunks longer than their context.
TEST(Verify, HoldsAtTheEdges) {
  const TemporaryFolder folder;
  for (int32_t context_len : {0, 1, 3, 16}) {
    Safetensors file = small_sequence();
    file.tensors.at("context_len").elements<int32_t>()[0] = context_len;
    const Finished finished = pagefill({"verify", write_case(folder, file)});
    EXPECT_EQ(finished.exit_code, 0) << finished.out << finished.err;
  }
  Safetensors file = small_sequence();
  file.tensors["query"] = Tensor::zeros(DType::kFloat32, {0, 4, 8});
  const Finished finished = pagefill({"verify", write_case(folder, file)});
  EXPECT_EQ(finished.exit_code, 0) << finished.out << finished.err;
}

}  // namespace
}  // namespace pagefill::cli
