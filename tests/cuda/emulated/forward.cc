// The forward kernels of the table, for the emulated run time.
#include "backends/cuda/kernels.h"
#include "backends/cuda/portable/kernel.cuh"
#include "backends/cuda/sm90/kernel.cuh"
#include "machine/launch.h"

namespace pagefill::cuda {
namespace {

// All kernels of a template have one type.
using Sm90 = decltype(&sm90::forward<sm90::Config<__nv_bfloat16, 64, 1>>);
using Portable = decltype(&forward<Config<__nv_bfloat16, false, 64, 1>>);

const bool added = [] {
  for (const ForwardKernel& kernel : forward_kernels()) {
    const void* const function = kernel.function;
    const bool is_portable = kernel.compute_capability == 0;
    emulated::add_kernel(function, is_portable ? emulated::caller_of(Portable{}, function)
                                               : emulated::caller_of(Sm90{}, function));
  }
  return true;
}();

}  // namespace
}  // namespace pagefill::cuda
