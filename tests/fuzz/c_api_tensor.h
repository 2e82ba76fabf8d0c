// Tensors for the C interface from a fuzzer's bytes. A view that could be valid describes memory that
// exists, to the byte, so that AddressSanitizer sees a read that validation should have prevented. Where
// the bytes run out, everything is as a good call has it.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>
#include <pagefill/pagefill.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

namespace pagefill::fuzzing {

inline constexpr int64_t kMaxBytes = 1 << 20;

class Tensor {
 public:
  // An int32 tensor whose element i is usual(i), or else something around the `limit` of good values.
  template <typename Usual>
  Tensor(FuzzedDataProvider& bytes, std::vector<int64_t> shape, int64_t limit, const Usual& usual)
      : Tensor(bytes, PAGEFILL_INT32, std::move(shape)) {
    for (size_t i = 0; i + sizeof(int32_t) <= size_; i += sizeof(int32_t)) {
      const auto index = static_cast<int64_t>(i / sizeof(int32_t));
      const auto value = static_cast<int32_t>(odd(bytes) ? any_near(bytes, limit) : usual(index));
      std::memcpy(memory_.get() + offset_ + i, &value, sizeof value);
    }
  }

  Tensor(FuzzedDataProvider& bytes, int32_t dtype, std::vector<int64_t> shape) {
    const auto rank = static_cast<int32_t>(shape.size());
    shape.resize(PAGEFILL_MAX_RANK);
    if (odd(bytes)) shape[bytes.ConsumeIntegralInRange(0, 3)] = any_extent(bytes);
    view_ = pagefill_tensor_init(nullptr, dtype, rank, shape.data());
    if (odd(bytes)) view_.rank = bytes.ConsumeIntegralInRange(-1, 5);
    if (odd(bytes)) view_.dtype = bytes.ConsumeIntegralInRange(-1, 9);
    if (odd(bytes)) view_.device_type = bytes.ConsumeIntegralInRange(-1, 2);
    if (odd(bytes)) view_.struct_size = bytes.ConsumeIntegralInRange<size_t>(0, 256);
    while (odd(bytes)) {
      view_.strides[bytes.ConsumeIntegralInRange(0, 3)] =
          bytes.ConsumeBool() ? bytes.ConsumeIntegralInRange<int64_t>(-2, 64) : any_extent(bytes);
    }
    null_ = odd(bytes);
    if (odd(bytes)) offset_ = bytes.ConsumeIntegralInRange<size_t>(0, 7);
    allocate(bytes.ConsumeIntegral<uint8_t>());
    if (odd(bytes)) view_.data = nullptr;
  }

  // False where the view's memory is more than this fuzzer wants to have.
  bool exists() const { return exists_; }

  const pagefill_tensor* get() const { return null_ ? nullptr : &view_; }
  int64_t extent(int i) const { return view_.shape[i]; }

  template <typename T>
  int64_t largest() const {
    int64_t largest = 0;
    for (size_t i = 0; i + sizeof(T) <= size_; i += sizeof(T)) {
      T value;
      std::memcpy(&value, memory_.get() + offset_ + i, sizeof value);
      largest = std::max<int64_t>(largest, value);
    }
    return largest;
  }

  std::vector<std::byte> snapshot() const {
    return {memory_.get(), memory_.get() + offset_ + size_};
  }

  static bool odd(FuzzedDataProvider& bytes) { return bytes.ConsumeIntegral<uint8_t>() > 251; }

 private:
  static int64_t any_extent(FuzzedDataProvider& bytes) {
    constexpr int64_t kLimits[] = {INT64_MAX, INT64_MAX / 2 + 1, int64_t{1} << 32,
                                   int64_t{1} << 31};
    switch (bytes.ConsumeIntegralInRange(0, 3)) {
      case 0:
        return bytes.PickValueInArray(kLimits);
      case 1:
        return bytes.ConsumeIntegral<int64_t>();
      default:
        return bytes.ConsumeIntegralInRange<int64_t>(-1, 40);
    }
  }
  static int64_t any_near(FuzzedDataProvider& bytes, int64_t limit) {
    const int64_t limits[] = {limit, limit - 1, limit + 1, -1, INT32_MAX, INT32_MIN};
    return bytes.ConsumeBool() ? bytes.PickValueInArray(limits) : bytes.ConsumeIntegral<int32_t>();
  }

  // From the first element to the end of the last one. None where no valid view has that shape and those
  // strides, or where they pass 2^63 bytes: such a view has to be refused before it is read.
  void allocate(uint8_t fill) {
    __int128 last = 0;
    const int rank = std::clamp(view_.rank, 0, int{PAGEFILL_MAX_RANK});
    for (int i = 0; i < rank; ++i) {
      if (view_.shape[i] <= 0 || view_.strides[i] < 0) return allocate(0, fill);
      last += static_cast<__int128>(view_.shape[i] - 1) * view_.strides[i];
      if (last > INT64_MAX) return allocate(0, fill);  // the sum of four products could pass 2^127
    }
    const __int128 size = (last + 1) * std::max<int64_t>(pagefill_dtype_size(view_.dtype), 1);
    if (size > INT64_MAX) return allocate(0, fill);
    exists_ = size <= kMaxBytes;
    allocate(exists_ ? static_cast<size_t>(size) : 0, fill);
  }
  void allocate(size_t size, uint8_t fill) {
    size_ = size;
    memory_ = std::make_unique<std::byte[]>(offset_ + size);
    std::memset(memory_.get(), fill, offset_ + size);
    view_.data = memory_.get() + offset_;
  }

  pagefill_tensor view_{};
  std::unique_ptr<std::byte[]> memory_;
  size_t size_ = 0, offset_ = 0;
  bool null_ = false, exists_ = true;
};

}  // namespace pagefill::fuzzing
