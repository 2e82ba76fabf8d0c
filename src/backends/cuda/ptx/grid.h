// Kernels of one stream that overlap: each may begin before the one before it has ended. Compiled for less than
// compute capability 9.0 these are nothing, and no kernel may be launched so (Plan::overlaps).
#pragma once

namespace pagefill::cuda::ptx {

// Until the kernel before this one has ended, and what it wrote can be read. Before anything is read or written.
__device__ __forceinline__ void wait_for_kernel_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may begin, up to where it waits for this one.
__device__ __forceinline__ void begin_kernel_behind() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace pagefill::cuda::ptx
