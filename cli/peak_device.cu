#include <algorithm>
#include <cstdint>

#include "device_memory.h"
#include "peak_device.h"

namespace pagefill::cli {
namespace {

constexpr int kThreads = 256, kBlocksPerMultiprocessor = 4, kSteps = 4096;
constexpr int kChains = 8;  // that do not wait for each other

__global__ void __launch_bounds__(kThreads) multiply_matrices(float* out) {
  float d[kChains][4] = {};
  const uint32_t a = threadIdx.x & 1 ? 0x3f803f80u : 0x3f00bf00u;
#pragma unroll 1
  for (int i = 0; i < kSteps; ++i) {
#pragma unroll
    for (float(&x)[4] : d) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, "
          "{%4, %4}, {%0, %1, %2, %3};"
          : "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])
          : "r"(a));
    }
  }
  float sum = 0;
  for (float(&x)[4] : d) sum += x[0] + x[1] + x[2] + x[3];
  if (sum == 12345.0f) *out = sum;
}

__global__ void __launch_bounds__(kThreads) multiply_add(float* out) {
  float d[kChains];
  for (int i = 0; i < kChains; ++i) d[i] = static_cast<float>(threadIdx.x + i);
#pragma unroll 1
  for (int i = 0; i < kSteps; ++i) {
#pragma unroll
    for (float& x : d) x = __fmaf_rn(x, 0.999f, 0.5f);
  }
  float sum = 0;
  for (float x : d) sum += x;
  if (sum == 12345.0f) *out = sum;
}

// Seconds of the fastest of a few runs.
template <typename Run>
double fastest(Run run) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  float best = 1e30f;
  for (int i = 0; i < 6; ++i) {
    cudaEventRecord(begin);
    run();
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, begin, end);
    best = std::min(best, milliseconds);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return best * 1e-3;
}

}  // namespace

double device_peak_flops(DType dtype) {
  int multiprocessors = 0;
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0);
  const int blocks = multiprocessors * kBlocksPerMultiprocessor;
  const DeviceMemory out(sizeof(float));
  auto* const to = reinterpret_cast<float*>(out.data());
  const bool is_float = dtype == DType::kFloat32;
  const double seconds = fastest([&] {
    if (is_float) {
      multiply_add<<<blocks, kThreads>>>(to);
    } else {
      multiply_matrices<<<blocks, kThreads>>>(to);
    }
  });
  // Of a warp's instruction: 32 multiply-adds, or 16 * 8 * 16.
  const double flops = 2.0 * (is_float ? 32 : 16 * 8 * 16);
  return flops * kChains * kSteps * (kThreads / 32) * blocks / seconds;
}

double device_peak_bandwidth() {
  constexpr size_t kBytes = size_t{1} << 30;
  const DeviceMemory from(kBytes), to(kBytes);
  const double seconds =
      fastest([&] { cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice); });
  return 2.0 * kBytes / seconds;
}

}  // namespace pagefill::cli
