#include "case_file.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "small_case.h"

namespace pagefill::cli {
namespace {

std::string message_with_metadata(const std::string& key, const std::string& text) {
  Safetensors file = small_sequence();
  file.metadata[key] = text;
  return case_from(std::move(file)).status().message();
}

TEST(CaseFile, OptionsAreReadFromTheMetadata) {
  Safetensors file = small_sequence();
  file.metadata = {{"softmax_scale", "0.25"},
                   {"attn_logits_soft_cap", "30"},
                   {"sliding_window", "4096"},
                   {"mask_value", "-1e3"},
                   {"description", "all"}};
  const Result<Case> c = case_from(std::move(file));
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_EQ(c->options.softmax_scale, 0.25f);
  EXPECT_EQ(c->options.attn_logits_soft_cap, 30.0f);
  EXPECT_EQ(c->options.sliding_window, 4096);
  EXPECT_EQ(c->options.mask_value, -1000.0f);
  EXPECT_EQ(c->description, "all");
}

TEST(CaseFile, WithoutMetadataOptionsHaveTheirDefaults) {
  const Result<Case> c = case_from(small_sequence());
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_FALSE(c->options.softmax_scale.has_value());
  EXPECT_FALSE(c->options.attn_logits_soft_cap.has_value());
  EXPECT_FALSE(c->options.sliding_window.has_value());
  EXPECT_EQ(c->options.mask_value, kDefaultMaskValue);
  EXPECT_FALSE(c->batch().options.sinks.given());
  EXPECT_FALSE(c->batch().options.kv_start.given());
}

TEST(CaseFile, OneSequenceIsTheBatchOfOne) {
  const Result<Case> c = case_from(small_sequence());
  ASSERT_TRUE(c.ok()) << c.status().message();
  const Result<State> alone = attend(*c, {});
  const Result<State> batched = attend(c->batch(), {});
  ASSERT_TRUE(alone.ok()) << alone.status().message();
  ASSERT_TRUE(batched.ok()) << batched.status().message();
  EXPECT_EQ(alone->output, batched->output);
  EXPECT_EQ(alone->lse, batched->lse);
}

TEST(CaseFile, EveryTensorOfABatchReachesTheCall) {
  const Result<Case> c = case_from(small_batch());
  ASSERT_TRUE(c.ok()) << c.status().message();
  const Result<State> original = attend(*c, {});
  ASSERT_TRUE(original.ok()) << original.status().message();
  for (const char* name : {"query", "key_cache", "value_cache", "sinks"}) {
    Safetensors file = small_batch();
    for (float& element : file.tensors.at(name).elements<float>()) element *= 2;
    const Result<Case> changed = case_from(std::move(file));
    const Result<State> state = attend(*changed, {});
    ASSERT_TRUE(state.ok()) << state.status().message();
    EXPECT_NE(state->output, original->output) << name;
  }
  for (const char* name : {"query_starts", "context_lens", "page_table", "kv_start"}) {
    Safetensors file = small_batch();
    file.tensors.at(name).elements<int32_t>()[1] -= 1;
    const Result<Case> changed = case_from(std::move(file));
    const Result<State> state = attend(*changed, {});
    if (std::string_view(name) == "page_table") {
      EXPECT_EQ(state.status().code(), StatusCode::kInvalidArgument);
      continue;
    }
    ASSERT_TRUE(state.ok()) << state.status().message();
    EXPECT_NE(state->output, original->output) << name;
  }
}

TEST(CaseFile, EveryScaleReachesTheCall) {
  const Context reference{.backend = "reference"};
  const Result<Case> c = case_from(small_quantised());
  ASSERT_TRUE(c.ok()) << c.status().message();
  const Result<State> original = attend(*c, reference);
  ASSERT_TRUE(original.ok()) << original.status().message();
  for (const char* name : {"key_scale", "value_scale"}) {
    Safetensors file = small_quantised();
    file.tensors.at(name).elements<float>()[1] *= 2;
    const Result<Case> changed = case_from(std::move(file));
    const Result<State> state = attend(*changed, reference);
    ASSERT_TRUE(state.ok()) << state.status().message();
    EXPECT_NE(state->output, original->output) << name;
  }
}

TEST(CaseFile, AScaleOfACacheThatIsNotQuantisedIsRefusedByTheCall) {
  Safetensors file = small_sequence();
  file.tensors["value_scale"] = Tensor::zeros(DType::kFloat32, {1});
  const Result<Case> c = case_from(std::move(file));
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_EQ(attend(*c, {}).status().message(),
            "value_scale: expected none, as value_cache is float32 and not quantised, got [1]");
}

TEST(CaseFile, MetadataThatIsUnknownIsRefusedByName) {
  EXPECT_EQ(message_with_metadata("softcap", "30"),
            "metadata softcap: expected softmax_scale, attn_logits_soft_cap, sliding_window, "
            "mask_value or description");
}

TEST(CaseFile, ANumberIsTheWholeText) {
  for (const char* key : {"softmax_scale", "attn_logits_soft_cap", "mask_value"}) {
    for (const char* text : {"", " 1", "1 ", "1x", "0x10", "one", "+1", "1,5", "1e999"}) {
      EXPECT_EQ(
          message_with_metadata(key, text),
          "metadata " + std::string(key) + ": expected a float32 number, got \"" + text + "\"");
    }
  }
  for (const char* text : {"", "1.0", "1e3", " 4", "4 ", "+4", "9223372036854775808", "full"}) {
    EXPECT_EQ(message_with_metadata("sliding_window", text),
              "metadata sliding_window: expected an integer, got \"" + std::string(text) + "\"");
  }
}

TEST(CaseFile, ATensorThatIsMissingIsNamed) {
  for (const auto& whole : {small_sequence(), small_batch()}) {
    for (const char* name : {"query", "key_cache", "value_cache", "context_len", "page_indices",
                             "query_starts", "context_lens", "page_table"}) {
      Safetensors file = whole;
      if (file.tensors.erase(name) == 0) continue;
      EXPECT_EQ(case_from(std::move(file)).status().message(),
                "tensor " + std::string(name) + ": missing");
    }
  }
}

TEST(CaseFile, ATensorThatIsUnknownIsRefusedByName) {
  Safetensors file = small_sequence();
  file.tensors["block_table"] = Tensor::zeros(DType::kInt32, {1});
  EXPECT_EQ(case_from(std::move(file)).status().message(),
            "tensor block_table: not an argument of the operator, nor expected...");
}

TEST(CaseFile, ExpectationsMayHaveAnyEnding) {
  Safetensors file = small_sequence();
  file.tensors["expected"] = Tensor::zeros(DType::kFloat32, {5, 4, 16});
  file.tensors["expected_by_another_library"] = Tensor::zeros(DType::kFloat32, {1});
  const Result<Case> c = case_from(std::move(file));
  EXPECT_TRUE(c.ok()) << c.status().message();
}

TEST(CaseFile, TheNamesOfTheTwoCallsDoNotMix) {
  Safetensors file = small_sequence();
  file.tensors["page_table"] = Tensor::zeros(DType::kInt32, {1, 4});
  EXPECT_EQ(
      case_from(std::move(file)).status().message(),
      "tensors context_len and page_table are of different calls: one sequence has context_len "
      "and page_indices, a ragged batch has query_starts, context_lens, page_table");
}

// Shapes and dtypes are the library's to judge, whatever they are.
TEST(CaseFile, EveryTensorOfEveryWrongShapeAndDtypeIsRefusedByTheCall) {
  for (const Safetensors& whole : {small_sequence(), small_batch(), small_quantised()}) {
    for (const auto& [name, tensor] : whole.tensors) {
      std::vector<Tensor> wrong{Tensor::zeros(tensor.dtype, {}), Tensor::zeros(tensor.dtype, {0}),
                                Tensor::zeros(tensor.dtype, {1, 1, 1, 1, 1, 1}),
                                Tensor::zeros(DType::kInt64, tensor.shape),
                                Tensor::zeros(DType::kFloat64, tensor.shape)};
      for (Tensor& t : wrong) {
        if (t.shape == tensor.shape && t.dtype == tensor.dtype) continue;
        const std::string described = describe(t);
        Safetensors file = whole;
        file.tensors[name] = std::move(t);
        const Result<Case> c = case_from(std::move(file));
        ASSERT_TRUE(c.ok()) << c.status().message();
        const Result<State> state = attend(*c, {});
        EXPECT_EQ(state.status().code(), StatusCode::kInvalidArgument) << name << " " << described;
      }
    }
  }
}

}  // namespace
}  // namespace pagefill::cli
