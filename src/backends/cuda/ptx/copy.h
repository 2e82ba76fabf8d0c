// Copies from global to shared memory that the thread does not wait for.
#pragma once

#include <cstdint>

namespace pagefill::cuda::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Copies 4 or 8 bytes, or writes zeros where `is_valid` is false and reads nothing. 16 of them are
// copy_async_some's.
template <int kBytes>
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool is_valid) {
  static_assert(kBytes == 4 || kBytes == 8);
  const int size = is_valid ? kBytes : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes),
               "r"(size)
               : "memory");
}

// 16 bytes, of which `size` are read, and the others written as zeros.
__device__ __forceinline__ void copy_async_some(uint32_t to, const void* from, int size) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size)
               : "memory");
}

// 16 bytes, all of which are there.
__device__ __forceinline__ void copy_async_whole(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// The barrier's phase also waits until all copies of this thread so far are done. The thread does not.
__device__ __forceinline__ void arrive_behind_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Until at most kPending groups of this thread's copies are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace pagefill::cuda::ptx
