// Memory that catches what should not be touched.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pagefill::testing {

// Which end of the memory borders on a page that cannot be read or written.
enum class Guard { kBehind, kBefore };

// Bytes whose first or last one borders on an unmapped page, so that reading one byte too many is a
// fault rather than luck.
class GuardedBuffer {
 public:
  GuardedBuffer() = default;
  // `reserved` bytes of address space are this buffer's, although only `size` of them can be
  // touched.
  GuardedBuffer(int64_t size, Guard guard, int64_t reserved = 0);
  GuardedBuffer(GuardedBuffer&& other) noexcept;
  GuardedBuffer& operator=(GuardedBuffer&& other) noexcept;
  ~GuardedBuffer();

  std::byte* data() const { return data_; }
  int64_t size() const { return size_; }
  int64_t reserved() const { return reserved_; }

  // From here on a write is a fault.
  void make_read_only();

 private:
  std::byte* mapping_ = nullptr;
  size_t mapping_size_ = 0;
  size_t body_size_ = 0;  // whole pages that hold the bytes, behind the first, unmapped page
  std::byte* data_ = nullptr;
  int64_t size_ = 0, reserved_ = 0;
};

// Address space without memory behind it until it is written: zeros, at no cost.
class SparseMemory {
 public:
  explicit SparseMemory(size_t size);
  SparseMemory(const SparseMemory&) = delete;
  SparseMemory& operator=(const SparseMemory&) = delete;
  ~SparseMemory();

  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace pagefill::testing
