// The cases of tests/golden: ejkernel's inputs, and the operator in float64; and the same of caches that
// append_kv has quantised.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "device_call.h"
#include "safetensors.h"
#include "support/run.h"
#include "support/tolerance.h"

namespace pagefill::testing {
namespace {

using cli::Safetensors;
using cli::Tensor;

std::vector<std::string> golden_files(const std::string& folder = PAGEFILL_GOLDEN_DIR) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

AttentionOptions options_of(const Safetensors& file) {
  AttentionOptions options;
  for (const auto& [key, value] : file.metadata) {
    if (key == "softmax_scale") {
      options.softmax_scale = std::stof(value);
    } else if (key == "attn_logits_soft_cap") {
      options.attn_logits_soft_cap = std::stof(value);
    } else if (key == "sliding_window") {
      options.sliding_window = std::stoll(value);
    } else {
      EXPECT_EQ(key, "description") << "an option that this test does not know";
    }
  }
  for (const auto& [name, option] : {std::pair("key_scale", &options.key_scale),
                                     std::pair("value_scale", &options.value_scale)}) {
    if (file.tensors.contains(name)) *option = file.tensors.at(name).view();
  }
  return options;
}

// The largest number that is not filler: the cases that poison unused slots fill them with NaN.
double largest_value(const TensorView& values) {
  double largest = 0;
  for (int64_t i = 0; i < values.num_elements(); ++i) {
    const double value = std::abs(cli::load(values, i));
    if (std::isfinite(value)) largest = std::max(largest, value);
  }
  return largest;
}

void expect_golden(const Safetensors& file, const Where& where) {
  const auto view = [&](const char* name) { return file.tensors.at(name).view(); };
  const Tensor& expected = file.tensors.at("expected_f64");
  Tensor output = Tensor::zeros(view("query").dtype, expected.shape);
  Tensor lse = Tensor::zeros(DType::kFloat32, {expected.shape[0], expected.shape[1]});
  CallReport report;
  Context context;
  context.backend = where.backend;
  context.cpu_target = where.target;
  context.report = &report;
  const Status status = cli::prefill_from_host(
      view("query"), view("key_cache"), view("value_cache"), view("context_len"),
      view("page_indices"), options_of(file), {output.view(), lse.view()}, context);
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_EQ(report.backend, where.backend);

  const int32_t context_len = file.tensors.at("context_len").elements<int32_t>()[0];
  const AttentionOptions options = options_of(file);
  const double largest = largest_value(view("value_cache")) *
                         (options.value_scale.given() ? largest_value(options.value_scale) : 1);
  const auto want = expected.elements<double>();
  for (size_t i = 0; i < want.size(); ++i) {
    const double got = cli::load(output.view(), static_cast<int64_t>(i));
    const double tolerance =
        output_tolerance(output.dtype, view("key_cache").dtype, want[i], context_len, largest) +
        weight_tolerance(report, output.dtype, view("key_cache").dtype, largest);
    ASSERT_TRUE(close(got, want[i], tolerance)) << "element " << i << ": expected " << want[i]
                                                << " within " << tolerance << ", got " << got;
  }
  const auto want_lse = file.tensors.at("expected_lse_f64").elements<double>();
  for (size_t i = 0; i < want_lse.size(); ++i) {
    ASSERT_TRUE(close(lse.elements<float>()[i], want_lse[i], lse_tolerance(want_lse[i])))
        << "lse " << i << ": expected " << want_lse[i] << ", got " << lse.elements<float>()[i];
  }
}

void expect_all_golden(const std::vector<std::string>& files) {
  for (const std::string& path : files) {
    const Result<Safetensors> file = cli::read_safetensors(path);
    ASSERT_TRUE(file.ok()) << file.status().message();
    for (const Where& where : all_targets()) {
      SCOPED_TRACE(path + ", " + describe(where));
      expect_golden(*file, where);
    }
  }
}

TEST(Golden, EveryCaseOnEveryTargetIsWithinTheTolerance) {
  const std::vector<std::string> files = golden_files();
  ASSERT_GE(files.size(), 12u) << "cases are missing from " << PAGEFILL_GOLDEN_DIR;
  expect_all_golden(files);
}

TEST(Golden, EveryQuantisedCaseOnEveryTargetIsWithinTheTolerance) {
  const std::vector<std::string> files = golden_files(PAGEFILL_GOLDEN_DIR "/quantised");
  ASSERT_EQ(files.size(), 2u);
  expect_all_golden(files);
}

// What ejkernel itself computes, in query's dtype; it rounds intermediate results to that dtype, so
// this says that both compute the same operator, not how well.
TEST(Golden, EjkernelsOwnOutputIsTheSameOperator) {
  for (const std::string& path : golden_files()) {
    SCOPED_TRACE(path);
    const Result<Safetensors> file = cli::read_safetensors(path);
    ASSERT_TRUE(file.ok()) << file.status().message();
    const auto want = file->tensors.at("expected_f64").elements<double>();
    const TensorView theirs = file->tensors.at("expected").view();
    const double unit = theirs.dtype == DType::kFloat32 ? 1e-5 : 0x1p-6;
    const double largest = largest_value(file->tensors.at("value_cache").view());
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_NEAR(cli::load(theirs, static_cast<int64_t>(i)), want[i], unit * largest) << i;
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
