// Non-owning views of tensors: where the elements are, what they are, and how to step.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <ranges>
#include <string>
#include <type_traits>

#include "pagefill/export.h"
#include "pagefill/float_types.h"

namespace pagefill {

enum class DType : int32_t {
  kFloat32 = 0,
  kBFloat16 = 1,
  kFloat16 = 2,
  kInt32 = 3,
  kFloat64 = 4,  // known so that it can be refused by name; no operator takes it
  kInt64 = 5,    // likewise
  kInt8 = 6,
  kFloat8E4M3 = 7,
  kFloat8E5M2 = 8,
};

// What a quantised cache may hold: the numbers that take part are these times a scale.
constexpr bool is_quantised(DType dtype) {
  return dtype == DType::kInt8 || dtype == DType::kFloat8E4M3 || dtype == DType::kFloat8E5M2;
}

// "float32", "bfloat16", ..., "float8_e4m3fn"
PAGEFILL_EXPORT const char* dtype_name(DType dtype);
// Bytes of one element.
PAGEFILL_EXPORT int64_t dtype_size(DType dtype);

template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<float> : std::integral_constant<DType, DType::kFloat32> {};
template <>
struct DTypeOf<bfloat16> : std::integral_constant<DType, DType::kBFloat16> {};
template <>
struct DTypeOf<float16> : std::integral_constant<DType, DType::kFloat16> {};
template <>
struct DTypeOf<int32_t> : std::integral_constant<DType, DType::kInt32> {};
template <>
struct DTypeOf<double> : std::integral_constant<DType, DType::kFloat64> {};
template <>
struct DTypeOf<int64_t> : std::integral_constant<DType, DType::kInt64> {};
template <>
struct DTypeOf<int8_t> : std::integral_constant<DType, DType::kInt8> {};
template <>
struct DTypeOf<float8_e4m3> : std::integral_constant<DType, DType::kFloat8E4M3> {};
template <>
struct DTypeOf<float8_e5m2> : std::integral_constant<DType, DType::kFloat8E5M2> {};

enum class DeviceType : int32_t { kCpu = 0, kCuda = 1 };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int32_t index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

inline constexpr int kMaxRank = 4;

// An element type (const where only reading is allowed) that a view with this Pointer may hold.
template <typename T, typename Pointer>
concept ElementOf = std::is_convertible_v<T*, Pointer> && requires {
  DTypeOf<std::remove_const_t<T>>{};
};

template <typename Range>
using RangeElement = std::remove_reference_t<std::ranges::range_reference_t<Range>>;

// Pointer is `const void*` (TensorView) or `void*` (MutableTensorView). Strides count elements, not
// bytes. A default-constructed view is "not given".
template <typename Pointer>
struct BasicTensorView {
  Pointer data = nullptr;
  DType dtype = DType::kFloat32;
  int32_t rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> strides{};
  Device device{};

  BasicTensorView() = default;

  // Row-major, without gaps.
  BasicTensorView(Pointer elements, DType type, std::initializer_list<int64_t> extents)
      : data(elements), dtype(type) {
    for (int64_t extent : extents) {
      if (rank < kMaxRank) shape[rank] = extent;
      ++rank;  // a rank beyond kMaxRank stays visible, and is refused by name in the call
    }
    // Unsigned: it wraps where the shape is too large for any memory, which the call refuses.
    uint64_t stride = 1;
    for (int i = (rank < kMaxRank ? rank : kMaxRank) - 1; i >= 0; --i) {
      strides[i] = static_cast<int64_t>(stride);
      stride *= static_cast<uint64_t>(shape[i]);
    }
  }

  BasicTensorView(Pointer elements, DType type, std::initializer_list<int64_t> extents,
                  std::initializer_list<int64_t> element_strides)
      : BasicTensorView(elements, type, extents) {
    int i = 0;
    for (int64_t stride : element_strides) {
      if (i < kMaxRank) strides[i] = stride;
      ++i;
    }
    if (i != rank) rank = -1;  // refused by name in the call
  }

  // The dtype follows from the pointer's type.
  template <ElementOf<Pointer> T>
  BasicTensorView(T* elements, std::initializer_list<int64_t> extents)
      : BasicTensorView(elements, DTypeOf<std::remove_const_t<T>>::value, extents) {}
  template <ElementOf<Pointer> T>
  BasicTensorView(T* elements, std::initializer_list<int64_t> extents,
                  std::initializer_list<int64_t> element_strides)
      : BasicTensorView(elements, DTypeOf<std::remove_const_t<T>>::value, extents,
                        element_strides) {}

  // A vector, array or span is a tensor of rank 1. The view is good as long as the range lives.
  template <std::ranges::contiguous_range Range>
    requires(std::ranges::sized_range<Range>&& ElementOf<RangeElement<Range>, Pointer>)
  BasicTensorView(Range&& range)  // NOLINT: implicit on purpose
      : BasicTensorView(std::ranges::data(range), DTypeOf<std::ranges::range_value_t<Range>>::value,
                        {static_cast<int64_t>(std::ranges::size(range))}) {}

  // What may be written may be read.
  template <std::same_as<void*> Writable>
    requires(std::is_const_v<std::remove_pointer_t<Pointer>>)
  BasicTensorView(const BasicTensorView<Writable>& other)  // NOLINT: implicit; a template: no copy
      : data(other.data),
        dtype(other.dtype),
        rank(other.rank),
        shape(other.shape),
        strides(other.strides),
        device(other.device) {}

  bool given() const { return data != nullptr || rank != 0; }

  int64_t num_elements() const {
    int64_t count = 1;
    for (int i = 0; i < rank && i < kMaxRank; ++i) count *= shape[i];
    return count;
  }
};

using TensorView = BasicTensorView<const void*>;
using MutableTensorView = BasicTensorView<void*>;

}  // namespace pagefill
