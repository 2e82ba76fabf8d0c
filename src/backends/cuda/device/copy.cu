// Copies slots from page to page: a block a copy, a warp a row.
#include "backends/cuda/kernels.h"

namespace pagefill::cuda {
namespace {

constexpr int kCopyThreads = 256;

template <typename Vector>
__device__ void copy_row(const char* from, char* to, int64_t bytes) {
  for (int64_t i = threadIdx.x % 32; i < bytes / static_cast<int64_t>(sizeof(Vector)); i += 32) {
    reinterpret_cast<Vector*>(to)[i] = reinterpret_cast<const Vector*>(from)[i];
  }
}

__global__ void __launch_bounds__(kCopyThreads) copy(const __grid_constant__ CopyArguments a) {
  const CopyArguments::Copy page = a.copies[blockIdx.x];
  const int64_t num_rows = int64_t{a.num_kv_heads} * page.num_slots;
  const int64_t step = int64_t{gridDim.y} * (kCopyThreads / 32);
  for (int64_t i = (int64_t{blockIdx.y} * kCopyThreads + threadIdx.x) / 32; i < num_rows;
       i += step) {
    const int64_t head = i / page.num_slots, slot = i % page.num_slots;
#pragma unroll 1
    for (const CopyRows& rows : a.rows) {
      if (rows.data == nullptr) continue;
      char* const base = rows.data + head * rows.head_stride + slot * rows.slot_stride;
      const char* const from = base + page.source * rows.page_stride;
      char* const to = base + page.destination * rows.page_stride;
      switch (rows.vector_bytes) {
        case 16:
          copy_row<uint4>(from, to, rows.row_bytes);
          break;
        case 8:
          copy_row<uint2>(from, to, rows.row_bytes);
          break;
        case 4:
          copy_row<uint32_t>(from, to, rows.row_bytes);
          break;
        case 2:
          copy_row<uint16_t>(from, to, rows.row_bytes);
          break;
        default:
          copy_row<uint8_t>(from, to, rows.row_bytes);
      }
    }
  }
}

}  // namespace

cudaError_t launch_copy(const CopyArguments& a, cudaStream_t stream) {
  int64_t most = 0;
  for (int i = 0; i < a.num_copies; ++i) {
    most = a.copies[i].num_slots > most ? a.copies[i].num_slots : most;
  }
  if (most == 0 || a.num_kv_heads == 0) return cudaSuccess;
  constexpr int64_t kRowsAtOnce = kCopyThreads / 32, kMaxBlocks = 64;  // of a page
  const int64_t blocks = (most * a.num_kv_heads + kRowsAtOnce - 1) / kRowsAtOnce;
  void* arguments[] = {const_cast<CopyArguments*>(&a)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(&copy),
                          dim3(static_cast<unsigned>(a.num_copies),
                               static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)),
                          dim3(kCopyThreads), arguments, 0, stream);
}

}  // namespace pagefill::cuda
