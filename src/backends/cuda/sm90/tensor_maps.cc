#include "backends/cuda/sm90/tensor_maps.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace pagefill::cuda::sm90 {
namespace {

constexpr int kMinBoxRows =
    4;  // below it the issue of so many boxes takes longer than cp.async of their rows
constexpr int kElementBytes = 2, kPartElements = 64;
constexpr int64_t kMaxStrideBytes = int64_t{1} << 40;

// From the driver, so that the library loads where there is none.
auto encode_function() {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &found);
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) function = nullptr;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  return encode;
}

bool encode(const Arguments& a, const CacheView& cache, int box_rows, CUtensorMap& map) {
  const int64_t extents[3] = {a.page_size, a.total_num_pages, a.num_kv_heads};
  const int64_t strides[3] = {cache.slot_stride, cache.page_stride, cache.head_stride};
  cuuint64_t dims[4] = {static_cast<cuuint64_t>(cache.dim)};
  cuuint64_t stride_bytes[3];
  for (int i = 0; i < 3; ++i) {
    // The stride of what there is only one of is never used, and may be anything.
    const int64_t bytes = extents[i] == 1 ? 16 : strides[i] * kElementBytes;
    if (bytes <= 0 || bytes % 16 != 0 || bytes >= kMaxStrideBytes) return false;
    dims[i + 1] = static_cast<cuuint64_t>(extents[i]);
    stride_bytes[i] = static_cast<cuuint64_t>(bytes);
  }
  const cuuint32_t box[4] = {kPartElements, static_cast<cuuint32_t>(box_rows), 1, 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUtensorMapDataType type = a.cache_dtype == DType::kBFloat16
                                       ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                       : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return encode_function()(&map, type, 4, const_cast<void*>(cache.data), dims, stride_bytes, box,
                           steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                           CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace

TensorMaps make_tensor_maps(const Arguments& a, int most_rows) {
  TensorMaps maps{};
  const int box_rows = std::gcd(a.page_size, most_rows);
  if (box_rows < kMinBoxRows || encode_function() == nullptr || a.keys.vector_bytes < 16 ||
      a.values.vector_bytes < 16) {
    return maps;
  }
  if (encode(a, a.keys, box_rows, maps.keys) && encode(a, a.values, box_rows, maps.values)) {
    maps.box_rows = box_rows;
  }
  return maps;
}

}  // namespace pagefill::cuda::sm90
