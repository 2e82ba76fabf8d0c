#include "tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <new>

namespace pagefill::cli {
namespace {

template <typename View, typename Pointer>
View view_of(const Tensor& tensor, Pointer data) {
  View view;
  view.data = data;
  view.dtype = tensor.dtype;
  view.rank = static_cast<int32_t>(tensor.shape.size());
  int64_t stride = 1;
  for (int i = std::min(view.rank, kMaxRank) - 1; i >= 0; --i) {
    view.shape[i] = tensor.shape[i];
    view.strides[i] = stride;
    stride *= tensor.shape[i];
  }
  return view;
}

}  // namespace

std::optional<int64_t> tensor_bytes(DType dtype, std::span<const int64_t> shape) {
  int64_t size = dtype_size(dtype);
  bool is_empty = false;
  for (const int64_t extent : shape) {
    if (extent < 0) return std::nullopt;
    is_empty = is_empty || extent == 0;
    if (__builtin_mul_overflow(size, std::max<int64_t>(extent, 1), &size)) return std::nullopt;
  }
  return is_empty ? 0 : size;
}

Tensor Tensor::zeros(DType dtype, std::vector<int64_t> shape) {
  const std::optional<int64_t> size = tensor_bytes(dtype, shape);
  if (!size) throw std::bad_alloc();
  return {dtype, std::move(shape), decltype(bytes)(static_cast<size_t>(*size))};
}

TensorView Tensor::view() const { return view_of<TensorView>(*this, bytes.data()); }
MutableTensorView Tensor::view() { return view_of<MutableTensorView>(*this, bytes.data()); }

std::string describe(const Tensor& tensor) {
  return fmt::format("{} [{}]", dtype_name(tensor.dtype), fmt::join(tensor.shape, ", "));
}

double load(const TensorView& view, int64_t offset) {
  switch (view.dtype) {
    case DType::kFloat64:
      return static_cast<const double*>(view.data)[offset];
    case DType::kBFloat16:
      return static_cast<float>(static_cast<const bfloat16*>(view.data)[offset]);
    case DType::kFloat16:
      return static_cast<float>(static_cast<const float16*>(view.data)[offset]);
    case DType::kInt8:
      return static_cast<const int8_t*>(view.data)[offset];
    case DType::kFloat8E4M3:
      return static_cast<float>(static_cast<const float8_e4m3*>(view.data)[offset]);
    case DType::kFloat8E5M2:
      return static_cast<float>(static_cast<const float8_e5m2*>(view.data)[offset]);
    default:
      return static_cast<const float*>(view.data)[offset];
  }
}

void store(const MutableTensorView& view, int64_t offset, float value) {
  switch (view.dtype) {
    case DType::kBFloat16:
      static_cast<bfloat16*>(view.data)[offset] = bfloat16(value);
      break;
    case DType::kFloat16:
      static_cast<float16*>(view.data)[offset] = float16(value);
      break;
    case DType::kInt8:
      static_cast<int8_t*>(view.data)[offset] =
          std::isnan(value)
              ? int8_t{-128}
              : static_cast<int8_t>(std::nearbyint(std::clamp(value, -127.0f, 127.0f)));
      break;
    case DType::kFloat8E4M3:
      static_cast<float8_e4m3*>(view.data)[offset] = float8_e4m3(value);
      break;
    case DType::kFloat8E5M2:
      static_cast<float8_e5m2*>(view.data)[offset] = float8_e5m2(value);
      break;
    default:
      static_cast<float*>(view.data)[offset] = value;
  }
}

}  // namespace pagefill::cli
