// Quantised caches: what takes part is scale * element, whatever the scales are of and wherever they lie.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "device_call.h"
#include "support/conformance.h"
#include "support/elements.h"
#include "support/oracle.h"
#include "support/run.h"
#include "support/tolerance.h"

namespace pagefill::testing {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST(Quantised, EveryDtypeWithEveryPairOfScales) {
  for (DType dtype : kQuantisedDTypes) {
    for (ScalePer key : {ScalePer::kNone, ScalePer::kTensor, ScalePer::kHead, ScalePer::kSlot}) {
      for (ScalePer value :
           {ScalePer::kNone, ScalePer::kTensor, ScalePer::kHead, ScalePer::kSlot}) {
        Problem problem = random_problem(
            {.sequences = {{7, 131}, {1, 80}, {5, 5}}, .v_head_dim = 40, .cache_dtype = dtype});
        add_key_scale(problem, key);
        add_value_scale(problem, value);
        expect_conformance(problem);
      }
    }
  }
}

// The one KV head's scale and the tensor's have one shape.
TEST(Quantised, ScalesOfASingleHeadAreThoseOfTheTensor) {
  for (ScalePer per : {ScalePer::kTensor, ScalePer::kHead}) {
    Problem problem = random_problem({.num_kv_heads = 1, .cache_dtype = DType::kInt8});
    add_key_scale(problem, per);
    add_value_scale(problem, per);
    expect_conformance(problem);
  }
}

TEST(Quantised, AScaleOfOneChangesNoBit) {
  for (const Where& where : all_targets()) {
    for (DType dtype : kQuantisedDTypes) {
      Problem without = random_problem({.cache_dtype = dtype});
      without.key_scale = without.value_scale = {};
      Problem with = without;
      for (ScalePer per : kScalesPer) {
        add_key_scale(with, per);
        add_value_scale(with, per);
        for (Scales* scales : {&with.key_scale, &with.value_scale}) {
          for (float& scale : scales->numbers) scale = 1;
        }
        for (float& scale : with.sequences[0].key_scales) scale = 1;
        for (float& scale : with.sequences[0].value_scales) scale = 1;
        EXPECT_EQ(difference(run(without, {}, where), run(with, {}, where)), std::nullopt)
            << describe(where) << ": " << describe(with);
      }
    }
  }
}

// One scale of one slot of one KV head: of the rows that see it, and of no other.
TEST(Quantised, AScaleOfASlotMattersToTheRowsThatSeeItAndToNoOther) {
  constexpr int64_t kKey = 139, kHead = 1;
  const Problem problem = random_problem({.sequences = {{20, 150}}, .cache_dtype = DType::kInt8});
  for (std::vector<float> Sequence::*scales : {&Sequence::key_scales, &Sequence::value_scales}) {
    for (float factor : {1.5f, kNaN}) {
      Problem changed = problem;
      (changed.sequences[0].*scales)[kKey * problem.num_kv_heads + kHead] *= factor;
      for (const Where& where : all_targets()) {
        const Results before = run(problem, {}, where), after = run(changed, {}, where);
        for (int64_t row = 0; row < 20; ++row) {
          for (int64_t h = 0; h < 4; ++h) {
            const bool sees_it = h / 2 == kHead && 130 + row >= kKey;
            bool same = true, all_nan = true;
            for (int64_t d = 0; d < before.v_head_dim; ++d) {
              same = same && before.at(row, h, d) == after.at(row, h, d);
              all_nan = all_nan && std::isnan(after.at(row, h, d));
            }
            EXPECT_EQ(same, !sees_it) << describe(where) << ", row " << row << ", head " << h;
            if (std::isnan(factor)) {
              EXPECT_EQ(all_nan, sees_it) << describe(where) << ", row " << row << ", head " << h;
            }
          }
        }
      }
    }
  }
}

// Inputs may overlap themselves: one scale, given in every shape by strides of 0.
TEST(Quantised, ScalesMayBroadcastWithAStrideOfZero) {
  Problem problem = random_problem({.cache_dtype = DType::kFloat8E4M3});
  add_key_scale(problem, ScalePer::kTensor);
  add_value_scale(problem, ScalePer::kTensor);
  const Chunk chunks[] = {{0, 0, 20}};
  const Expected expected = oracle(problem);
  for (const Where& where : all_targets()) {
    for (int rank : {1, 3}) {
      Arguments arguments = lay_out(problem, chunks, {});
      const auto [heads, pages, slots, dim] = arguments.key_cache.shape;
      for (TensorView* scale : {&arguments.options.key_scale, &arguments.options.value_scale}) {
        scale->rank = rank;
        scale->shape = {heads, pages, slots};
        scale->strides = {};
      }
      const Status status = call(arguments, where);
      ASSERT_TRUE(status.ok()) << status.message();
      Results got{DType::kFloat32, 4, 32, {}, std::vector<float>(20 * 4), {}};
      std::memcpy(got.lse.data(), arguments.lse_memory.data(), got.lse.size() * sizeof(float));
      got.output.assign(arguments.output_memory.data(),
                        arguments.output_memory.data() + arguments.output_memory.size());
      expect_close(got, expected, problem);
    }
  }
}

// As engines keep them: each slot's row of 32 int8 with the 4 bytes of its scale behind it.
TEST(Quantised, ScalesMayLieBehindTheirRowsInTheCache) {
  constexpr int64_t kDim = 32, kRow = kDim + 4;
  const Problem problem = random_problem({.head_dim = kDim, .cache_dtype = DType::kInt8});
  const Chunk chunks[] = {{0, 0, 20}};
  for (const Where& where : all_targets()) {
    const Arguments plain = lay_out(problem, chunks, {});
    Arguments fused = lay_out(problem, chunks, {});
    const auto [heads, pages, slots, dim] = plain.key_cache.shape;
    std::vector<float> memory[2];
    for (int i : {0, 1}) {
      const TensorView& cache = i == 0 ? plain.key_cache : plain.value_cache;
      const TensorView& scale = i == 0 ? plain.options.key_scale : plain.options.value_scale;
      memory[i].resize(static_cast<size_t>(heads * pages * slots * kRow / 4));
      auto* bytes = reinterpret_cast<int8_t*>(memory[i].data());
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t token = 0; token < 150; ++token) {
          int8_t* row = bytes + (h * pages * slots + token) * kRow;
          const int64_t page = token / slots, slot = token % slots;
          std::memcpy(row,
                      static_cast<const int8_t*>(cache.data) + h * cache.strides[0] +
                          page * cache.strides[1] + slot * cache.strides[2],
                      kDim);
          std::memcpy(row + kDim,
                      static_cast<const float*>(scale.data) + h * scale.strides[0] +
                          page * scale.strides[1] + slot * scale.strides[2],
                      4);
        }
      }
      (i == 0 ? fused.key_cache : fused.value_cache) = TensorView(
          bytes, {heads, pages, slots, kDim}, {pages * slots * kRow, slots * kRow, kRow, 1});
      (i == 0 ? fused.options.key_scale : fused.options.value_scale) =
          TensorView(memory[i].data() + kDim / 4, {heads, pages, slots},
                     {pages * slots * kRow / 4, slots * kRow / 4, kRow / 4});
    }
    ASSERT_TRUE(call(plain, where).ok());
    const Status status = call(fused, where);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(std::memcmp(plain.output_memory.data(), fused.output_memory.data(),
                          static_cast<size_t>(plain.output_memory.size())),
              0)
        << describe(where);
  }
}

// A cache of one slot, whose value is every code of the dtype: attention to one key is its value.
TEST(Quantised, EveryCodeOfAValueIsReadExactly) {
  const std::vector<float> query(8, 1.0f), scale = {0.75f};
  const std::vector<int8_t> key(8);
  const std::vector<int32_t> context_len = {1}, page_indices = {0};
  std::vector<std::byte> codes(256);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::byte>(i);
  for (DType dtype : kQuantisedDTypes) {
    for (const Where& where : all_targets()) {
      std::vector<float> output(256);
      AttentionOptions options;
      options.value_scale = scale;
      const Status status =
          cli::prefill_from_host({query.data(), {1, 1, 8}}, {key.data(), dtype, {1, 1, 1, 8}},
                                 {codes.data(), dtype, {1, 1, 1, 256}}, context_len, page_indices,
                                 options, MutableTensorView(output.data(), {1, 1, 256}),
                                 {.backend = where.backend, .cpu_target = where.target});
      ASSERT_TRUE(status.ok()) << status.message();
      for (int64_t i = 0; i < 256; ++i) {
        const double value = 0.75 * load(codes.data(), dtype, i);
        EXPECT_TRUE(close(output[static_cast<size_t>(i)], value, 0))
            << describe(where) << ": " << dtype_name(dtype) << " code " << i << ": expected "
            << value << ", got " << output[static_cast<size_t>(i)];
      }
    }
  }
}

// Query head h asks for element h of the one key, so that its lse is that element.
TEST(Quantised, EveryFiniteCodeOfAKeyIsReadExactly) {
  std::vector<float> query(256 * 256);
  for (size_t h = 0; h < 256; ++h) query[h * 256 + h] = 1;
  const std::vector<int8_t> value(8);
  const std::vector<float> scale = {0.75f};
  const std::vector<int32_t> context_len = {1}, page_indices = {0};
  for (DType dtype : kQuantisedDTypes) {
    std::vector<std::byte> codes(256);
    for (size_t i = 0; i < codes.size(); ++i) {
      codes[i] = static_cast<std::byte>(i);
      if (!std::isfinite(load(codes.data(), dtype, static_cast<int64_t>(i)))) codes[i] = {};
    }
    for (const Where& where : all_targets()) {
      std::vector<float> output(256 * 8), lse(256);
      AttentionOptions options;
      options.softmax_scale = 1.0f;
      options.key_scale = scale;
      const Status status = cli::prefill_from_host(
          {query.data(), {1, 256, 256}}, {codes.data(), dtype, {1, 1, 1, 256}},
          {value.data(), dtype, {1, 1, 1, 8}}, context_len, page_indices, options,
          {MutableTensorView(output.data(), {1, 256, 8}), MutableTensorView(lse.data(), {1, 256})},
          {.backend = where.backend, .cpu_target = where.target});
      ASSERT_TRUE(status.ok()) << status.message();
      for (int64_t i = 0; i < 256; ++i) {
        const double score = 0.75 * load(codes.data(), dtype, i);
        EXPECT_TRUE(close(lse[static_cast<size_t>(i)], score, 0x1p-22 * std::abs(score)))
            << describe(where) << ": " << dtype_name(dtype) << " code " << i << ": expected "
            << score << ", got " << lse[static_cast<size_t>(i)];
      }
    }
  }
}

}  // namespace
}  // namespace pagefill::testing
