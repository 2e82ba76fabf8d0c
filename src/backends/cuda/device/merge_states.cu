// merge_attention_states: a warp a row. The arithmetic is that of the CPU, double.
#include "backends/cuda/device/elements.cuh"
#include "backends/cuda/kernels.h"

namespace pagefill::cuda {
namespace {

constexpr int kMergeThreads = 256;
constexpr float kNoKeys = -std::numeric_limits<float>::infinity();  // lse of the empty state

__device__ float lse_of(const Rows& lse, int64_t token, int64_t head) {
  return static_cast<const float*>(lse.data)[token * lse.token_stride + head * lse.head_stride];
}

__device__ const char* row_of(const Rows& output, int64_t token, int64_t head, int element_size) {
  return static_cast<const char*>(output.data) +
         (token * output.token_stride + head * output.head_stride) * element_size;
}

// A lane reads its elements of both states before it writes them, so that the result may lie in a or b; lse
// is read by all before one writes it.
__global__ void __launch_bounds__(kMergeThreads)
    merge_rows(const __grid_constant__ MergeArguments a) {
  const int64_t row = (int64_t{blockIdx.x} * kMergeThreads + threadIdx.x) / 32;
  if (row >= a.num_rows) return;
  const int lane = threadIdx.x % 32;
  const int64_t token = row / a.num_q_heads, head = row % a.num_q_heads;
  const float lse_a = lse_of(a.lse_a, token, head), lse_b = lse_of(a.lse_b, token, head);
  __syncwarp();
  const char* const from_a = row_of(a.output_a, token, head, a.element_size);
  const char* const from_b = row_of(a.output_b, token, head, a.element_size);
  char* const to = const_cast<char*>(row_of(a.output, token, head, a.element_size));
  float lse = kNoKeys;
  if (lse_a == kNoKeys || lse_b == kNoKeys) {
    const bool both = lse_a == kNoKeys && lse_b == kNoKeys;
    const char* const from = lse_b == kNoKeys ? from_a : from_b;
    for (int d = lane; d < a.v_head_dim; d += 32) {
      if (both) {
        store_element(to, a.dtype, d, 0, 1);
      } else {
        copy_element(from, a.dtype, to, a.dtype, d, 1);
      }
    }
    if (!both) lse = lse_b == kNoKeys ? lse_a : lse_b;
  } else {
    // exp of the larger lse as the unit, so that nothing overflows.
    const double max = fmax(static_cast<double>(lse_a), static_cast<double>(lse_b));
    const double w_a = exp(lse_a - max), w_b = exp(lse_b - max), sum = w_a + w_b;
    for (int d = lane; d < a.v_head_dim; d += 32) {
      const double x = load_element(from_a, a.dtype, d), y = load_element(from_b, a.dtype, d);
      store_element(to, a.dtype, d, static_cast<float>(w_a / sum * x + w_b / sum * y), 1);
    }
    lse = static_cast<float>(max + log(sum));
  }
  if (lane == 0 && a.lse.data != nullptr) {
    static_cast<float*>(a.lse.data)[token * a.lse.token_stride + head * a.lse.head_stride] = lse;
  }
}

}  // namespace

cudaError_t launch_merge(const MergeArguments& a, cudaStream_t stream) {
  void* arguments[] = {const_cast<MergeArguments*>(&a)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(&merge_rows),
                          dim3(static_cast<unsigned>(ceil_div(a.num_rows * 32, kMergeThreads))),
                          dim3(kMergeThreads), arguments, 0, stream);
}

}  // namespace pagefill::cuda
