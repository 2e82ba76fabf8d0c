// The forward kernels of the table, for the emulated run time.
#include "backends/cuda/kernels.h"
#include "backends/cuda/sm90/kernel.cuh"
#include "machine/launch.h"

namespace pagefill::cuda {
namespace {

// All kernels of the template have one type.
using AnyConfig = sm90::Config<__nv_bfloat16, 64, 1>;

const bool added = [] {
  for (const ForwardKernel& kernel : forward_kernels())
    emulated::add_kernel(kernel.function, emulated::caller_of(decltype(&sm90::forward<AnyConfig>){},
                                                              kernel.function));
  return true;
}();

}  // namespace
}  // namespace pagefill::cuda
