// Every dtype to the numbers of the same value that the products take: exactly, but for what float16 and
// bfloat16 queries meet as float32 anyway.
#pragma once

#include <cuda_fp8.h>

#include "backends/cuda/device/pairs.cuh"
#include "backends/cuda/portable/load.cuh"

namespace pagefill::cuda {

__device__ __forceinline__ float load_float8(uint8_t bits, __nv_fp8_interpretation_t kind) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(bits, kind)));
}

// 8 elements in a row as float32; `from` is aligned to their size.
__device__ __forceinline__ void load_floats(const char* from, DType dtype, float (&x)[8]) {
  switch (dtype) {
    case DType::kFloat32:
#pragma unroll
      for (int d = 0; d < 8; ++d) x[d] = reinterpret_cast<const float*>(from)[d];
      break;
    case DType::kBFloat16:
#pragma unroll
      for (int d = 0; d < 8; ++d) {
        x[d] = __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(from)[d]);
      }
      break;
    case DType::kFloat16:
#pragma unroll
      for (int d = 0; d < 8; ++d) x[d] = __half2float(reinterpret_cast<const __half*>(from)[d]);
      break;
    case DType::kInt8:
#pragma unroll
      for (int d = 0; d < 8; ++d) x[d] = reinterpret_cast<const int8_t*>(from)[d];
      break;
    case DType::kFloat8E4M3:
#pragma unroll
      for (int d = 0; d < 8; ++d) {
        x[d] = load_float8(reinterpret_cast<const uint8_t*>(from)[d], __NV_E4M3);
      }
      break;
    default:
#pragma unroll
      for (int d = 0; d < 8; ++d) {
        x[d] = load_float8(reinterpret_cast<const uint8_t*>(from)[d], __NV_E5M2);
      }
  }
}

// Two elements of 8 bits, bytes 0 and 1 (or 2 and 3) of a word, as two 16-bit numbers of the same value.
template <typename T, DType kDType, int kHalf>
__device__ __forceinline__ uint32_t widened(uint32_t word) {
  if constexpr (kDType == DType::kInt8) {
    constexpr uint32_t kBytes = kHalf == 0 ? 0x4140u : 0x4342u;
    if constexpr (std::is_same_v<T, __half>) {
      // A byte behind the upper bits of 2^10 is 2^10 + byte; 128 more makes the byte unsigned.
      const uint32_t biased = __byte_perm(word ^ 0x80808080u, 0x64646464u, kBytes);
      const __half2 x = __hsub2(reinterpret_cast<const __half2&>(biased),
                                __half2(__ushort_as_half(0x6480), __ushort_as_half(0x6480)));
      return reinterpret_cast<const uint32_t&>(x);
    } else {
      // Behind the upper bits of 2^7, which has 7 bits of mantissa, 7 bits are 2^7 + bits, and the sign's
      // makes 2^8 of it: the difference is the byte.
      const uint32_t both = __byte_perm(word, 0x43434343u, kBytes);
      const uint32_t bits = both & 0xff7fff7fu, sign = both & 0xff80ff80u;
      const __nv_bfloat162 x = __hsub2(reinterpret_cast<const __nv_bfloat162&>(bits),
                                       reinterpret_cast<const __nv_bfloat162&>(sign));
      return reinterpret_cast<const uint32_t&>(x);
    }
  } else {
    constexpr auto kKind = kDType == DType::kFloat8E4M3 ? __NV_E4M3 : __NV_E5M2;
    const __half2_raw raw = __nv_cvt_fp8x2_to_halfraw2(
        static_cast<__nv_fp8x2_storage_t>(kHalf == 0 ? word & 0xffffu : word >> 16), kKind);
    if constexpr (std::is_same_v<T, __half>) return raw.x | static_cast<uint32_t>(raw.y) << 16;
    const float2 x = __half22float2(__half2(raw));
    return pack<T>(x.x, x.y);
  }
}

template <typename T, DType kDType>
__device__ __forceinline__ void widen_piece(const char* piece, char* wide) {
  constexpr int kPiece = 128;
  const int first_row = threadIdx.x / 4, first_chunk = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < kTileKv * kPiece / 16 / kThreads; ++i) {
    const int row = first_row + i % 2 * 32, chunk = first_chunk + i / 2 * 4;
    const uint4 x =
        *reinterpret_cast<const uint4*>(piece + row * kPiece + place_of_8_bits(chunk, row) * 16);
    char* const to = wide + row * kPiece * 2;
    *reinterpret_cast<uint4*>(to + swizzled(2 * chunk, row) * 16) = {
        widened<T, kDType, 0>(x.x), widened<T, kDType, 1>(x.x), widened<T, kDType, 0>(x.y),
        widened<T, kDType, 1>(x.y)};
    *reinterpret_cast<uint4*>(to + swizzled(2 * chunk + 1, row) * 16) = {
        widened<T, kDType, 0>(x.z), widened<T, kDType, 1>(x.z), widened<T, kDType, 0>(x.w),
        widened<T, kDType, 1>(x.w)};
  }
}

// A piece of 8 bits that has arrived, as 16-bit numbers, exactly.
template <typename T>
__device__ __forceinline__ void widen_piece(const char* piece, DType dtype, char* wide) {
  switch (dtype) {
    case DType::kInt8:
      return widen_piece<T, DType::kInt8>(piece, wide);
    case DType::kFloat8E4M3:
      return widen_piece<T, DType::kFloat8E4M3>(piece, wide);
    default:
      return widen_piece<T, DType::kFloat8E5M2>(piece, wide);
  }
}

// 8 elements of a row of 16-bit numbers, in their exchanged place, or of float32.
template <typename T, int kRow>
__device__ __forceinline__ void store_chunk(T* rows, int row, int chunk, const float (&x)[8]) {
  if constexpr (std::is_same_v<T, float>) {
    float4* const to = reinterpret_cast<float4*>(rows + row * kRow + chunk * 8);
    to[0] = {x[0], x[1], x[2], x[3]};
    to[1] = {x[4], x[5], x[6], x[7]};
  } else {
    *reinterpret_cast<uint4*>(rows + row * kRow + swizzled(chunk, row) * 8) = {
        pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7])};
  }
}

// A piece that has arrived, as float32.
template <class C>
__device__ __forceinline__ void stage_piece(const char* piece, DType dtype, int element_size,
                                            float* staged) {
  constexpr int kChunks = C::kPiece / 8;
#pragma unroll 2
  for (int i = threadIdx.x; i < kTileKv * kChunks; i += kThreads) {
    float x[8];
    load_floats(piece + i * 8 * element_size, dtype, x);
    store_chunk<float, C::kPieceRow>(staged, i / kChunks, i % kChunks, x);
  }
}

// The queries of a row tile: rows [first_row, first_row + num_rows) of the sequence's packed rows, zeros
// behind them and behind head_dim.
template <class C>
__device__ __forceinline__ void load_queries(const Arguments& a, int64_t query_start, int kv_head,
                                             int64_t first_row, int num_rows,
                                             typename C::Element* queries) {
  using Element = typename C::Element;
  constexpr int kChunks = C::kPiece / 8;
  const int chunks = num_pieces<C>(a.keys.dim) * kChunks;
  const int element_size = a.query_dtype == DType::kFloat32 ? 4 : 2;
#pragma unroll 2
  for (int i = threadIdx.x; i < a.tile_rows * chunks; i += kThreads) {
    const int row = i / chunks, chunk = i % chunks;
    Element* const piece = queries + chunk / kChunks * a.tile_rows * C::kPieceRow;
    const bool is_there = row < num_rows && chunk * 8 < a.keys.dim;
    const int64_t packed = first_row + row;
    const int64_t at = (query_start + packed / a.group) * a.query.token_stride +
                       (kv_head * a.group + packed % a.group) * a.query.head_stride + chunk * 8;
    const char* const from = static_cast<const char*>(a.query.data) + at * element_size;
    if constexpr (!std::is_same_v<Element, float>) {
      if (a.query.vector_bytes >= 16) {  // bits as they are
        *reinterpret_cast<uint4*>(piece + row * C::kPieceRow + swizzled(chunk % kChunks, row) * 8) =
            is_there ? *reinterpret_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
        continue;
      }
    }
    float x[8] = {};
    if (is_there) load_floats(from, a.query_dtype, x);
    store_chunk<Element, C::kPieceRow>(piece, row, chunk % kChunks, x);
  }
}

}  // namespace pagefill::cuda
