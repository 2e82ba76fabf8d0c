#include "machine/tensor_map.h"

#include <cuda.h>
#include <fmt/format.h>

#include <array>
#include <cstring>

#include "machine/block.h"

namespace emulated {
namespace {

constexpr int kRank = 4;
constexpr uint32_t kSwizzleBytes = 128, kElementBytes = 2;

struct TensorMap {
  uint64_t mark;
  const std::byte* data;
  std::array<uint64_t, kRank> extents;
  std::array<uint64_t, kRank> strides;  // bytes
  std::array<uint32_t, kRank> box;
};
constexpr uint64_t kMark = 0x70616765626f7865;
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

}  // namespace

uint32_t bring_box(Block& block, const Box& box) {
  TensorMap map;
  std::memcpy(&map, box.map.data(), sizeof(map));
  if (map.mark != kMark) block.fail("a box of a tensor map that was not encoded");
  const uint32_t row_bytes = map.box[0] * kElementBytes;
  const uint32_t rows = map.box[1] * map.box[2] * map.box[3], bytes = row_bytes * rows;
  if (box.to % kSwizzleBytes != 0 || !block.memory.contains(box.to, bytes))
    block.fail(fmt::format("a box of {} bytes to {:#x}", bytes, box.to));
  for (uint32_t row = 0; row < rows; ++row) {
    const uint32_t in_box[kRank] = {0, row % map.box[1], row / map.box[1] % map.box[2],
                                    row / map.box[1] / map.box[2]};
    const std::byte* from = map.data;
    bool is_inside = true;
    for (size_t i = 1; i < kRank; ++i) {
      const int64_t at = int64_t{box.at[i]} + in_box[i];
      is_inside &= at >= 0 && static_cast<uint64_t>(at) < map.extents[i];
      from += at * static_cast<int64_t>(map.strides[i]);
    }
    for (uint32_t at = 0; at < row_bytes; at += kChunkBytes) {
      std::array<std::byte, kChunkBytes> chunk{};  // zeros outside of the tensor
      for (uint32_t e = 0; e < kChunkBytes / kElementBytes; ++e) {
        const int64_t x = int64_t{box.at[0]} + at / kElementBytes + e;
        if (is_inside && x >= 0 && static_cast<uint64_t>(x) < map.extents[0])
          std::memcpy(&chunk[e * kElementBytes], from + x * int64_t{kElementBytes}, kElementBytes);
      }
      uint32_t to = box.to + row * row_bytes + at;
      to ^= (to >> 7 & 7) << 4;
      block.memory.write_as_engine(block.now(), to, chunk.data(), kChunkBytes);
    }
  }
  return bytes;
}

}  // namespace emulated

// With the driver's checks, of the kind that pagefill asks for.
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                void* data, const cuuint64_t* extents, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* steps,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  using namespace emulated;
  const bool is_known =
      (type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16) &&
      rank == kRank && interleave == CU_TENSOR_MAP_INTERLEAVE_NONE &&
      swizzle == CU_TENSOR_MAP_SWIZZLE_128B && fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
  if (!is_known || reinterpret_cast<uintptr_t>(map) % 64 != 0 ||
      reinterpret_cast<uintptr_t>(data) % 16 != 0)
    return CUDA_ERROR_INVALID_VALUE;
  TensorMap encoded{kMark, static_cast<const std::byte*>(data), {}, {kElementBytes}, {}};
  for (size_t i = 0; i < kRank; ++i) {
    if (extents[i] == 0 || extents[i] > uint64_t{1} << 32 || box[i] == 0 || box[i] > 256 ||
        steps[i] != 1)
      return CUDA_ERROR_INVALID_VALUE;
    if (i > 0 && (strides[i - 1] % 16 != 0 || strides[i - 1] >= uint64_t{1} << 40))
      return CUDA_ERROR_INVALID_VALUE;
    encoded.extents[i] = extents[i], encoded.box[i] = box[i];
    if (i > 0) encoded.strides[i] = strides[i - 1];
  }
  // The swizzle is of rows of 128 bytes; what is emulated has no shorter ones.
  if (box[0] * kElementBytes != kSwizzleBytes) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(map, &encoded, sizeof(encoded));
  return CUDA_SUCCESS;
}
