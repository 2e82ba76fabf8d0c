// In place of src/backends/cuda/ptx/copy.h.
#pragma once

#include "machine/device.h"

namespace pagefill::cuda::ptx {

using emulated::arrive_behind_copies;
using emulated::commit_copies;
using emulated::shared_address;

template <int kBytes>
void copy_async(uint32_t to, const void* from, bool is_valid) {
  static_assert(kBytes == 4 || kBytes == 8);
  emulated::copy_async(to, from, kBytes, is_valid ? kBytes : 0);
}
inline void copy_async_some(uint32_t to, const void* from, int size) {
  emulated::copy_async(to, from, 16, size);
}
inline void copy_async_whole(uint32_t to, const void* from) {
  emulated::copy_async(to, from, 16, 16);
}
template <int kPending>
void wait_for_copies() {
  emulated::wait_for_copies(kPending);
}

}  // namespace pagefill::cuda::ptx
