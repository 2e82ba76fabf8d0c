// Views from DLPack tensors.
#include <gtest/gtest.h>
#include <pagefill/attention.h>
#include <pagefill/dlpack.h>

#include <array>
#include <vector>

namespace pagefill {
namespace {

struct Tensor {
  std::array<float, 64> data{};
  std::array<int64_t, 3> shape{2, 3, 8};
  std::array<int64_t, 3> strides{32, 8, 1};
  DLTensor dl{};

  Tensor() {
    dl.data = data.data();
    dl.device = {kDLCPU, 0};
    dl.ndim = 3;
    dl.dtype = {kDLFloat, 32, 1};
    dl.shape = shape.data();
    dl.strides = strides.data();
  }
};

void expect_refused(const DLTensor& tensor, const char* message_has) {
  const Result<TensorView> view = from_dlpack(tensor, "query");
  ASSERT_FALSE(view.ok());
  EXPECT_EQ(view.status().code(), StatusCode::kInvalidArgument);
  const std::string& message = view.status().message();
  EXPECT_EQ(message.rfind("query: expected ", 0), 0u) << message;
  EXPECT_NE(message.find(message_has), std::string::npos) << message;
}

TEST(DLPack, ShapeStridesAndPointerAreTakenOver) {
  Tensor t;
  const Result<TensorView> view = from_dlpack(t.dl);
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(view.value().data, t.data.data());
  EXPECT_EQ(view.value().dtype, DType::kFloat32);
  EXPECT_EQ(view.value().rank, 3);
  EXPECT_EQ(view.value().shape, (std::array<int64_t, 4>{2, 3, 8, 0}));
  EXPECT_EQ(view.value().strides, (std::array<int64_t, 4>{32, 8, 1, 0}));
  EXPECT_EQ(view.value().device, Device{});
}

TEST(DLPack, NoStridesAreRowMajor) {
  Tensor t;
  t.dl.strides = nullptr;
  const Result<TensorView> view = from_dlpack(t.dl);
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(view.value().strides, (std::array<int64_t, 4>{24, 8, 1, 0}));
}

TEST(DLPack, TheByteOffsetMovesThePointer) {
  Tensor t;
  t.dl.byte_offset = 16;
  Result<MutableTensorView> view = mutable_from_dlpack(t.dl);
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(view->data, &t.data[4]);
}

TEST(DLPack, EveryDTypeOfPagefillIsKnown) {
  struct Row {
    DLDataType type;
    DType dtype;
  };
  const Row kRows[] = {
      {{kDLFloat, 32, 1}, DType::kFloat32}, {{kDLBfloat, 16, 1}, DType::kBFloat16},
      {{kDLFloat, 16, 1}, DType::kFloat16}, {{kDLInt, 32, 1}, DType::kInt32},
      {{kDLFloat, 64, 1}, DType::kFloat64}, {{kDLInt, 64, 1}, DType::kInt64},
      {{kDLInt, 8, 1}, DType::kInt8},       {{10, 8, 1}, DType::kFloat8E4M3},  // DLPack 1.1's
      {{12, 8, 1}, DType::kFloat8E5M2},                                        // codes
  };
  for (const Row& row : kRows) {
    Tensor t;
    t.dl.dtype = row.type;
    const Result<TensorView> view = from_dlpack(t.dl);
    ASSERT_TRUE(view.ok());
    EXPECT_EQ(view.value().dtype, row.dtype);
  }
}

TEST(DLPack, DevicesAreTold) {
  Tensor t;
  t.dl.device = {kDLCUDA, 1};
  EXPECT_EQ(from_dlpack(t.dl).value().device, (Device{DeviceType::kCuda, 1}));
  t.dl.device = {kDLCUDAHost, 1};
  EXPECT_EQ(from_dlpack(t.dl).value().device, Device{});
  t.dl.device = {kDLROCM, 0};
  expect_refused(t.dl, "device type 10");
}

TEST(DLPack, WhatAViewCannotExpressIsRefused) {
  Tensor t;
  t.dl.dtype = {kDLFloat, 32, 4};
  expect_refused(t.dl, "4 lanes");
  t.dl.dtype = {kDLUInt, 8, 1};
  expect_refused(t.dl, "code 1 of 8 bits");
  t.dl.dtype = {kDLFloat, 32, 1};
  t.dl.ndim = 5;
  expect_refused(t.dl, "rank from 1 to 4, got 5");
  t.dl.ndim = 0;
  expect_refused(t.dl, "rank from 1 to 4, got 0");
  t.dl.ndim = 3;
  t.dl.shape = nullptr;
  expect_refused(t.dl, "shape, got null");
  t.dl.shape = t.shape.data();
  t.dl.strides = nullptr;
  t.shape = {int64_t{1} << 31, int64_t{1} << 31, 8};
  expect_refused(t.dl, "2^63 elements");
}

// One token that sees one key: its output is the value.
TEST(DLPack, AViewGoesIntoACall) {
  Tensor query, cache, output;
  std::array<int64_t, 4> cache_shape{1, 1, 1, 8};
  query.shape = output.shape = {1, 1, 8};
  query.dl.strides = output.dl.strides = cache.dl.strides = nullptr;
  cache.dl.ndim = 4;
  cache.dl.shape = cache_shape.data();
  for (size_t i = 0; i < 8; ++i) cache.data[i] = static_cast<float>(i);
  const std::vector<int32_t> context_len{1}, page_indices{0};
  const Status status = prefill_page_attention(
      from_dlpack(query.dl).value(), from_dlpack(cache.dl).value(), from_dlpack(cache.dl).value(),
      context_len, page_indices, {}, mutable_from_dlpack(output.dl).value());
  ASSERT_TRUE(status.ok()) << status.message();
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(output.data[i], static_cast<float>(i));
}

}  // namespace
}  // namespace pagefill
