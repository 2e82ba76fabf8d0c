// A tensor that owns its memory: row-major, without gaps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "pagefill/tensor.h"

namespace pagefill::cli {

// Memory that is zero without having been touched: a result of any size costs nothing until the library has
// accepted the call that writes it. calloc aligns to 16 bytes, more than any dtype asks for.
template <typename T>
struct ZeroedAllocator {
  using value_type = T;

  T* allocate(size_t count) {
    void* const memory = std::calloc(count, sizeof(T));
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t) { std::free(memory); }

  void construct(T*) {}
  void construct(T* place, const T& value) { *place = value; }

  friend bool operator==(const ZeroedAllocator&, const ZeroedAllocator&) = default;
};

struct Tensor {
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  std::vector<std::byte, ZeroedAllocator<std::byte>> bytes;

  // Filled with zeros. Throws std::bad_alloc when there is no such memory.
  static Tensor zeros(DType dtype, std::vector<int64_t> shape);

  template <typename T>
  static Tensor of(std::vector<int64_t> shape, std::span<const T> elements) {
    const auto bytes = std::as_bytes(elements);
    return {DTypeOf<T>::value, std::move(shape), {bytes.begin(), bytes.end()}};
  }

  // A rank beyond kMaxRank stays visible, so that a call refuses it by name.
  TensorView view() const;
  MutableTensorView view();

  // The elements; T must be the dtype's type.
  template <typename T>
  std::span<T> elements() {
    return {reinterpret_cast<T*>(bytes.data()), bytes.size() / sizeof(T)};
  }
  template <typename T>
  std::span<const T> elements() const {
    return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
  }

  friend bool operator==(const Tensor&, const Tensor&) = default;
};

// Bytes that such a tensor takes; nothing where an extent is negative, or where the extents that are not 0
// multiply to more than an int64 holds, so that strides could not be computed either.
std::optional<int64_t> tensor_bytes(DType dtype, std::span<const int64_t> shape);

// "float32 [2, 9, 16, 64]".
std::string describe(const Tensor& tensor);

// One element of a float64 tensor, or of any dtype that queries and caches have.
double load(const TensorView& view, int64_t offset);

// One element of any dtype that queries and caches have, rounded to it. int8 has no NaN: a NaN becomes -128,
// which append_kv never writes.
void store(const MutableTensorView& view, int64_t offset, float value);

}  // namespace pagefill::cli
