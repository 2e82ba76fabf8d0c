// Views from DLPack tensors (libdlpack-dev). Nothing is copied and nothing is owned: the DLTensor's
// memory has to outlive the view.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "pagefill/status.h"
#include "pagefill/tensor.h"

namespace pagefill {
namespace dlpack_detail {

inline Status error(std::string_view name, const std::string& message) {
  return Status(StatusCode::kInvalidArgument, std::string(name) + ": " + message);
}

inline std::optional<DType> dtype_of(const DLDataType& type) {
  struct Row {
    int code, bits;
    DType dtype;
  };
  // kDLFloat8_e4m3fn and kDLFloat8_e5m2 since DLPack 1.1; the header may be older than the tensor.
  constexpr int kFloat8E4M3Code = 10, kFloat8E5M2Code = 12;
  constexpr Row kRows[] = {
      {kDLFloat, 32, DType::kFloat32},
      {kDLBfloat, 16, DType::kBFloat16},
      {kDLFloat, 16, DType::kFloat16},
      {kDLInt, 32, DType::kInt32},
      {kDLFloat, 64, DType::kFloat64},
      {kDLInt, 64, DType::kInt64},
      {kDLInt, 8, DType::kInt8},
      {kFloat8E4M3Code, 8, DType::kFloat8E4M3},
      {kFloat8E5M2Code, 8, DType::kFloat8E5M2},
  };
  for (const Row& row : kRows) {
    if (row.code == type.code && row.bits == type.bits && type.lanes == 1) return row.dtype;
  }
  return std::nullopt;
}

inline std::optional<DeviceType> device_of(DLDeviceType type) {
  if (type == kDLCPU || type == kDLCUDAHost) return DeviceType::kCpu;  // the latter is pinned
  if (type == kDLCUDA) return DeviceType::kCuda;
  return std::nullopt;
}

}  // namespace dlpack_detail

// A view that may be written through. `name` is what the message of an error calls the tensor.
inline Result<MutableTensorView> mutable_from_dlpack(const DLTensor& tensor,
                                                     std::string_view name = "DLTensor") {
  using dlpack_detail::error;
  const std::optional<DType> dtype = dlpack_detail::dtype_of(tensor.dtype);
  if (!dtype) {
    return error(name,
                 "expected dtype float32, bfloat16, float16, int32, float64, int64, int8, "
                 "float8_e4m3fn or float8_e5m2 of one lane, got code " +
                     std::to_string(tensor.dtype.code) + " of " +
                     std::to_string(tensor.dtype.bits) + " bits and " +
                     std::to_string(tensor.dtype.lanes) + " lanes");
  }
  const std::optional<DeviceType> device = dlpack_detail::device_of(tensor.device.device_type);
  if (!device) {
    return error(name, "expected memory of the CPU or of CUDA, got device type " +
                           std::to_string(static_cast<int>(tensor.device.device_type)));
  }
  if (tensor.ndim < 1 || tensor.ndim > kMaxRank) {
    return error(name, "expected a rank from 1 to " + std::to_string(kMaxRank) + ", got " +
                           std::to_string(tensor.ndim));
  }
  if (tensor.shape == nullptr) return error(name, "expected a shape, got null");

  MutableTensorView view;
  view.dtype = *dtype;
  view.device = {*device, *device == DeviceType::kCuda ? tensor.device.device_id : 0};
  view.rank = tensor.ndim;
  // As an integer: data is null in a tensor without elements.
  view.data =
      reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(tensor.data) + tensor.byte_offset);
  int64_t stride = 1;  // row-major, where the tensor has no strides of its own
  for (int i = view.rank - 1; i >= 0; --i) {
    view.shape[i] = tensor.shape[i];
    view.strides[i] = tensor.strides == nullptr ? stride : tensor.strides[i];
    if (__builtin_mul_overflow(stride, tensor.shape[i], &stride) && tensor.strides == nullptr) {
      return error(name, "expected fewer than 2^63 elements, got a shape that has more");
    }
  }
  return view;
}

inline Result<TensorView> from_dlpack(const DLTensor& tensor, std::string_view name = "DLTensor") {
  Result<MutableTensorView> view = mutable_from_dlpack(tensor, name);
  if (!view.ok()) return view.status();
  return TensorView(*view);
}

}  // namespace pagefill
