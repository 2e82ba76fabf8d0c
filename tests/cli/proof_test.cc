// What `verify` relies on: the float64 formula, the variants, and that each check can fail.
#include "proof.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "accuracy.h"
#include "expected.h"
#include "small_case.h"
#include "variants.h"

namespace pagefill::cli {
namespace {

const Context kReference{.backend = "reference"};

Case case_of(Safetensors file, const std::string& key = "description",
             const std::string& text = "") {
  file.metadata[key] = text;
  Result<Case> c = case_from(std::move(file));
  EXPECT_TRUE(c.ok()) << c.status().message();
  return std::move(*c);
}

std::vector<Case> cases_of_all_options() {
  std::vector<Case> cases;
  for (const Safetensors& file : {small_sequence(), small_batch(), small_quantised()}) {
    cases.push_back(case_of(file));
    cases.push_back(case_of(file, "softmax_scale", "2"));
    cases.push_back(case_of(file, "attn_logits_soft_cap", "0.5"));
    cases.push_back(case_of(file, "sliding_window", "3"));
    cases.push_back(case_of(file, "mask_value", "-0.5"));
  }
  return cases;
}

Claim claim_of(const Case& c, const State& state) {
  return {c, state, kReference, [](std::string_view) {}};
}

TEST(Expected, AgreesWithTheReferenceInEveryOption) {
  for (const Case& c : cases_of_all_options()) {
    const Result<State> state = attend(c, kReference);
    ASSERT_TRUE(state.ok()) << state.status().message();
    const Accuracy accuracy = measure_accuracy(c.batch(), *state, expected_in_float64(c.batch()));
    EXPECT_EQ(accuracy.failure, "");
    EXPECT_LT(accuracy.lse_error, 1e-6);
  }
}

// Keys of equal scores: the output is the values' mean, lse the score plus the log of their number.
TEST(Expected, IsTheMeanOfTheValuesWhereAllScoresAreEqual) {
  Safetensors file = small_sequence();
  for (float& element : file.tensors.at("query").elements<float>()) element = 0;
  const Case c = case_of(std::move(file));
  const Batch batch = c.batch();
  const Expected expected = expected_in_float64(batch);
  for (int64_t row = 0; row < 5; ++row) {
    const int64_t num_keys = 7 + row;
    double mean = 0;
    for (int64_t j = 0; j < num_keys; ++j) {
      mean += load(batch.value_cache, batch.offset(batch.value_cache, 0, 1, j) + 9) /
              static_cast<double>(num_keys);
    }
    EXPECT_NEAR(load(expected.output.view(), (row * 4 + 3) * 16 + 9), mean, 1e-12);
    EXPECT_NEAR(load(expected.lse.view(), row * 4 + 3), std::log(num_keys), 1e-12);
  }
}

// int8 against the float32 cache that it dequantises to, exactly: scales of powers of two.
TEST(Expected, IsThatOfTheDequantisedCache) {
  Safetensors quantised = small_quantised(), dequantised = quantised;
  for (float& scale : quantised.tensors.at("key_scale").elements<float>()) scale = 0x1p-5f;
  quantised.tensors.at("value_scale").elements<float>()[0] = 0x1p-4f;
  quantised.tensors.at("value_scale").elements<float>()[1] = 0x1p-6f;
  for (const char* name : {"key_cache", "value_cache"}) {
    const Tensor& stored = quantised.tensors.at(name);
    Tensor floats = Tensor::zeros(DType::kFloat32, stored.shape);
    const auto count = static_cast<size_t>(stored.view().num_elements());
    for (size_t i = 0; i < count; ++i) {
      const float value_scale = i < count / 2 ? 0x1p-4f : 0x1p-6f;
      floats.elements<float>()[i] =
          stored.elements<int8_t>()[i] * (name[0] == 'k' ? 0x1p-5f : value_scale);
    }
    dequantised.tensors.at(name) = std::move(floats);
  }
  dequantised.tensors.erase("key_scale");
  dequantised.tensors.erase("value_scale");
  const Expected a = expected_in_float64(case_of(quantised).batch());
  const Expected b = expected_in_float64(case_of(dequantised).batch());
  EXPECT_EQ(a.output, b.output);
  EXPECT_EQ(a.lse, b.lse);
}

TEST(Accuracy, AnElementBeyondItsToleranceIsNamed) {
  const Case c = case_of(small_sequence());
  const Result<State> state = attend(c, kReference);
  Expected expected = expected_in_float64(c.batch());
  expected.output.elements<double>()[(3 * 4 + 2) * 16 + 7] += 1e-4;
  const Accuracy accuracy = measure_accuracy(c.batch(), *state, expected);
  EXPECT_EQ(accuracy.failure.substr(0, 17), "output[3, 2, 7]: ");
  EXPECT_NEAR(accuracy.error, 1e-4, 1e-6);
  EXPECT_LT(accuracy.tolerance, 1e-5);
}

TEST(Accuracy, AnLseBeyondItsToleranceIsNamed) {
  const Case c = case_of(small_sequence());
  const Result<State> state = attend(c, kReference);
  Expected expected = expected_in_float64(c.batch());
  expected.lse.elements<double>()[3 * 4 + 2] += 1e-3;
  EXPECT_EQ(measure_accuracy(c.batch(), *state, expected).failure.substr(0, 11), "lse[3, 2]: ");
}

TEST(Accuracy, NanIsNeverWithinTolerance) {
  const Case c = case_of(small_sequence());
  const Expected expected = expected_in_float64(c.batch());
  for (const float wrong :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Result<State> state = attend(c, kReference);
    state->output.elements<float>()[0] = wrong;
    EXPECT_NE(measure_accuracy(c.batch(), *state, expected).failure, "");
  }
}

TEST(Poisoned, ChangesAllThatNoRowAttendsToAndNothingElse) {
  const Case c = case_of(small_batch());
  const Case changed = poisoned(c, kPoisons[0]);
  // Sequence 0: positions 5 to 10 of pages 5, 0, 2. Sequence 1: 4 and 5, the slots 1 and 2 of page 1.
  const std::vector<std::vector<bool>> used = {
      {false, true, true, true},    {false, true, true, false},   {true, true, true, false},
      {false, false, false, false}, {false, false, false, false}, {false, false, false, false}};
  // The window of 2 leaves positions 5 on to rows at 6 to 10.
  for (const auto& [before, after] : {std::pair(&c.key_cache, &changed.key_cache),
                                      std::pair(&c.value_cache, &changed.value_cache)}) {
    const int64_t head_dim = before->shape[3];
    for (int64_t i = 0; i < std::ssize(before->elements<float>()); ++i) {
      const int64_t slot = i / head_dim % 4, page = i / head_dim / 4 % 6;
      const float a = before->elements<float>()[i], b = after->elements<float>()[i];
      if (used[page][slot]) {
        EXPECT_EQ(a, b) << "page " << page << " slot " << slot;
      } else {
        EXPECT_TRUE(std::isnan(b)) << "page " << page << " slot " << slot;
      }
    }
  }
  const auto entries = changed.page_table.elements<int32_t>();
  EXPECT_EQ(std::vector<int32_t>(entries.begin(), entries.end()),
            (std::vector<int32_t>{-1, 0, 2, 1, -1, -1, -1, -1, -1}));
  for (int64_t i = 0; i < 7 * 32; ++i) {
    EXPECT_EQ(std::isnan(changed.query.elements<float>()[i]), i >= 6 * 32);
  }
}

// Positions 0 to 10 lie in pages 5, 0 and 2.
TEST(Poisoned, ChangesTheScalesOfUnusedSlots) {
  const Case c = case_of(small_quantised());
  const Case changed = poisoned(c, kPoisons[0]);
  for (size_t i = 0; i < 48; ++i) {
    const size_t page = i / 4 % 6, slot = i % 4;
    const bool used = page == 5 || page == 0 || (page == 2 && slot < 3);
    const float before = c.key_scale->elements<float>()[i];
    const float after = changed.key_scale->elements<float>()[i];
    EXPECT_TRUE(used ? after == before : std::isnan(after)) << page << ", " << slot;
    for (size_t d = 0; d < 8; ++d) {
      const int8_t element = changed.key_cache.elements<int8_t>()[i * 8 + d];
      EXPECT_EQ(element, used ? c.key_cache.elements<int8_t>()[i * 8 + d] : -128);
    }
  }
  EXPECT_EQ(changed.value_scale, c.value_scale) << "of a KV head, and used";
}

TEST(Repaged, HoldsTheSameKeysInOtherPages) {
  for (const Case& c : cases_of_all_options()) {
    const Batch from = c.batch();
    for (int64_t page_size : {1, 3, 16, 528}) {
      const Case changed = repaged(c, page_size);
      const Batch to = changed.batch();
      EXPECT_EQ(to.page_size(), page_size);
      for (int64_t s = 0; s < from.num_seqs(); ++s) {
        const KeyRange keys = from.attended_keys(s);
        for (int64_t j = keys.begin; j < keys.end; ++j) {
          EXPECT_EQ(load(from.key_cache, from.offset(from.key_cache, s, 1, j) + 7),
                    load(to.key_cache, to.offset(to.key_cache, s, 1, j) + 7));
          EXPECT_EQ(from.scale(from.options.key_scale, s, 1, j),
                    to.scale(to.options.key_scale, s, 1, j));
        }
      }
    }
  }
}

TEST(Proofs, HoldForTheReferenceInEveryOption) {
  for (const Case& c : cases_of_all_options()) {
    const Result<State> state = attend(c, kReference);
    ASSERT_TRUE(state.ok()) << state.status().message();
    for (const auto& prove : {prove_unused_memory_is_unread, prove_invariance}) {
      const Result<Proof> proof = prove(claim_of(c, *state));
      ASSERT_TRUE(proof.ok()) << proof.status().message();
      EXPECT_EQ(proof->failure, "");
      EXPECT_GT(proof->num_variants, 0);
    }
  }
}

TEST(Proofs, OneBitOfOutputOrLseFailsThem) {
  const Case c = case_of(small_batch());
  const Result<State> state = attend(c, kReference);
  State output_differs = *state, lse_differs = *state;
  output_differs.output.bytes[4 * ((3 * 4 + 2) * 16 + 7)] ^= std::byte{1};
  lse_differs.lse.bytes[4 * (3 * 4 + 2)] ^= std::byte{1};
  for (const auto& prove : {prove_unused_memory_is_unread, prove_invariance}) {
    EXPECT_NE(prove(claim_of(c, output_differs))->failure.find(": output[3, 2, 7]: "),
              std::string::npos);
    EXPECT_NE(prove(claim_of(c, lse_differs))->failure.find(": lse[3, 2]: "), std::string::npos);
  }
}

TEST(Proofs, ChunksStayWholeWhereMaskedKeysCount) {
  std::vector<std::string> variants;
  const auto prove = [&](const Case& c) {
    variants.clear();
    const Result<State> state = attend(c, kReference);
    const Claim claim{c, *state, kReference, [&](std::string_view v) { variants.emplace_back(v); }};
    EXPECT_TRUE(prove_invariance(claim).ok());
    return std::ranges::count_if(variants, [](const auto& v) { return v.starts_with("chunks"); });
  };
  EXPECT_EQ(prove(case_of(small_sequence())), 10);
  EXPECT_EQ(prove(case_of(small_sequence(), "mask_value", "-1")), 0);
}

}  // namespace
}  // namespace pagefill::cli
