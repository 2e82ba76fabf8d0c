// Copies slots from page to page: of copies that the host has, a block a copy, a warp a row; of copies that stand
// on the device, a warp a row, which does them one after another.
#include <algorithm>

#include "backends/cuda/device/find.cuh"
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

// The row of one head and slot, from page to page.
__device__ void copy_slot(const CopyRows& rows, const Copy& page, int64_t head, int64_t slot) {
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

__global__ void __launch_bounds__(kCopyThreads) copy(const __grid_constant__ CopyArguments a) {
  const Copy page = a.copies[blockIdx.x];
  const int64_t num_rows = int64_t{a.num_kv_heads} * page.num_slots;
  const int64_t step = int64_t{gridDim.y} * (kCopyThreads / 32);
  for (int64_t i = (int64_t{blockIdx.y} * kCopyThreads + threadIdx.x) / 32; i < num_rows;
       i += step) {
    const int64_t head = i / page.num_slots, slot = i % page.num_slots;
#pragma unroll 1
    for (const CopyRows& rows : a.rows) {
      if (rows.data != nullptr) copy_slot(rows, page, head, slot);
    }
  }
}

// Which number of a copy is bad, as check_copy has it on the host; 3: none.
__device__ int bad_number(const ListedCopyArguments& a, const Copy& page) {
  if (page.source < 0 || page.source >= a.total_num_pages) return 0;
  if (page.destination < 0 || page.destination >= a.total_num_pages) return 1;
  if (page.num_slots < 0 || page.num_slots > a.page_size) return 2;
  return page.source == page.destination ? 1 : 3;
}

// blockIdx.y is keys, values, or the scales of either. A copy may need what an earlier one wrote: of a row, each
// lane has written all that it reads, so that the order of its instructions is the order of the copies.
__global__ void __launch_bounds__(kCopyThreads)
    copy_listed(const __grid_constant__ ListedCopyArguments a) {
  const CopyRows& rows = a.rows[blockIdx.y];
  if (rows.data == nullptr) return;
  const int64_t num_rows = int64_t{a.num_kv_heads} * a.page_size;
  const int64_t step = int64_t{gridDim.x} * (kCopyThreads / 32);
  const bool reports = blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0;
  for (int64_t row = (int64_t{blockIdx.x} * kCopyThreads + threadIdx.x) / 32; row < num_rows;
       row += step) {
    const int64_t head = row / a.page_size, slot = row % a.page_size;
#pragma unroll 1
    for (int64_t i = 0; i < a.num_copies; ++i) {
      const int32_t* const numbers = a.listed + i * a.copy_stride;
      const Copy page{numbers[0], numbers[a.number_stride], numbers[2 * a.number_stride]};
      const int bad = bad_number(a, page);
      if (bad < 3) {
        if (reports)
          report(a.status, CudaStatusCode::kCopies, i, bad, numbers[bad * a.number_stride]);
      } else if (slot < page.num_slots) {
        copy_slot(rows, page, head, slot);
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

cudaError_t launch_listed_copy(const ListedCopyArguments& a, cudaStream_t stream) {
  if (a.num_copies == 0) return cudaSuccess;
  constexpr int64_t kRowsAtOnce = kCopyThreads / 32, kMaxBlocks = 1024;
  const int64_t blocks = ceil_div(a.page_size * a.num_kv_heads, kRowsAtOnce);
  void* arguments[] = {const_cast<ListedCopyArguments*>(&a)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(&copy_listed),
                          dim3(static_cast<unsigned>(std::min(blocks, kMaxBlocks)), 4),
                          dim3(kCopyThreads), arguments, 0, stream);
}

}  // namespace pagefill::cuda
