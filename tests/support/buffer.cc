#include "support/buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <utility>

namespace pagefill::testing {
namespace {

std::byte* map(size_t size, int extra_flags) {
  void* p =
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | extra_flags, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::byte*>(p);
}

void protect(std::byte* begin, size_t size, int protection) {
  if (mprotect(begin, size, protection) != 0) throw std::bad_alloc();
}

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

size_t whole_pages(int64_t size) {
  return (static_cast<size_t>(size) + page() - 1) / page() * page();
}

}  // namespace

GuardedBuffer::GuardedBuffer(int64_t size, Guard guard, int64_t reserved)
    : size_(size), reserved_(std::max(size, reserved)) {
  body_size_ = whole_pages(size);
  mapping_size_ = page() + body_size_ + whole_pages(std::max<int64_t>(0, reserved - size)) + page();
  mapping_ = map(mapping_size_, MAP_NORESERVE);
  protect(mapping_, page(), PROT_NONE);
  protect(mapping_ + page() + body_size_, mapping_size_ - page() - body_size_, PROT_NONE);
  data_ = mapping_ + page() + (guard == Guard::kBefore ? 0 : body_size_ - size);
}

GuardedBuffer::GuardedBuffer(GuardedBuffer&& other) noexcept { *this = std::move(other); }

GuardedBuffer& GuardedBuffer::operator=(GuardedBuffer&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_size_, other.mapping_size_);
  std::swap(body_size_, other.body_size_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(reserved_, other.reserved_);
  return *this;
}

GuardedBuffer::~GuardedBuffer() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_size_);
}

void GuardedBuffer::make_read_only() {
  if (body_size_ > 0) protect(mapping_ + page(), body_size_, PROT_READ);
}

SparseMemory::SparseMemory(size_t size) : data_(map(size, MAP_NORESERVE)), size_(size) {}
SparseMemory::~SparseMemory() { munmap(data_, size_); }

}  // namespace pagefill::testing
