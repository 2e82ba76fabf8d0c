// Every dtype to the numbers of the same value that the products take: exactly, but for what float16 and
// bfloat16 queries meet as float32 anyway.
#pragma once

#include <cuda_fp8.h>

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

// Two neighbouring floats of 8 bits.
__device__ __forceinline__ float2 load_float8_pair(uint32_t bits, __nv_fp8_interpretation_t kind) {
  return __half22float2(
      __half2(__nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(bits & 0xffffu), kind)));
}

// The same of shared memory, where 8 elements of 8 bits are aligned to 8 bytes: many at once.
__device__ __forceinline__ void load_staged_floats(const char* from, DType dtype, float (&x)[8]) {
  if (!is_quantised(dtype)) return load_floats(from, dtype, x);
  const uint2 bits = *reinterpret_cast<const uint2*>(from);
  if (dtype == DType::kInt8) {
    // A byte behind the upper bits of 2^23 is the float 2^23 + byte; 128 more makes the byte unsigned.
    constexpr uint32_t k2To23 = 0x4b000000u;
    const uint32_t words[2] = {bits.x ^ 0x80808080u, bits.y ^ 0x80808080u};
#pragma unroll
    for (int d = 0; d < 8; ++d) {
      const uint32_t byte = __byte_perm(words[d / 4], k2To23, 0x7650u + d % 4);
      x[d] = __uint_as_float(byte) - (0x1p23f + 128);
    }
    return;
  }
  const __nv_fp8_interpretation_t kind = dtype == DType::kFloat8E4M3 ? __NV_E4M3 : __NV_E5M2;
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    const uint32_t word = pair < 2 ? bits.x : bits.y;
    const float2 two = load_float8_pair(word >> (pair % 2 * 16), kind);
    x[2 * pair] = two.x;
    x[2 * pair + 1] = two.y;
  }
}

template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t pack<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
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

// A piece that has arrived, converted.
template <class C, typename T>
__device__ __forceinline__ void stage_piece(const char* piece, DType dtype, int element_size,
                                            T* staged) {
  constexpr int kChunks = C::kPiece / 8;
#pragma unroll 2
  for (int i = threadIdx.x; i < kTileKv * kChunks; i += kThreads) {
    float x[8];
    load_staged_floats(piece + i * 8 * element_size, dtype, x);
    store_chunk<T, C::kPieceRow>(staged, i / kChunks, i % kChunks, x);
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
