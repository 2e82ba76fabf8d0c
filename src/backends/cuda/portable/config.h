// What a forward kernel of mma.sync (or of float32 multiply-adds) is compiled for, and its shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "backends/cuda/config.h"

namespace pagefill::cuda {

// Where the keys of a KV tile lie; filled in two or three tiles ahead.
struct TileTable {
  const char* keys[kTileKv];  // of what is not there, some address that is never read
  const char* values[kTileKv];
  float key_scale[kTileKv];
  float value_scale[kTileKv];
  uint32_t is_there[kTileKv / 32];  // a bit a key; others are zeros
  uint32_t is_bad[kTileKv / 32];    // its table entry is no page
  // Of each half of the tile, nonzero: a row does not see all of it, or an entry is bad; some row takes a
  // key that another does not, whose value must not reach the latter.
  uint8_t must_mask[kTileKv / 32], must_select[kTileKv / 32];
};

// RowKeys and Task, which device code alone knows.
inline constexpr int kRowKeysBytes = 16, kTaskBytes = 128;

// kElement: of queries and keys where they are multiplied. kIsStaged: the cache holds something else, which
// is converted in shared memory. kKeyWarps: warps that share the same 16 rows, 1 or 4.
template <typename ElementType, bool kIsStaged_, int kValueCols_, int kKeyWarps_>
struct Config {
  using Element = ElementType;
  static constexpr bool kIsFloat = std::is_same_v<Element, float>;
  static constexpr bool kIsStaged = kIsStaged_;
  static constexpr bool kIsQuantised = kIsStaged && !kIsFloat;  // 8 bits an element
  // A scale may take a weight out of float16's range.
  using Value = std::conditional_t<kIsStaged && !kIsFloat, __nv_bfloat16, Element>;
  static constexpr int kValueCols = kValueCols_;  // value columns of a task, at most
  static constexpr int kKeyWarps = kKeyWarps_;
  // Row blocks of 16 that a warp has, kBlockStep rows apart: two of them use each fragment of keys and of
  // values twice and hide each other's latencies, and leave registers for two blocks a multiprocessor.
  static constexpr int kRowBlocks = kKeyWarps == 1 && !kIsFloat && kValueCols <= 128 ? 2 : 1;
  static constexpr int kBlockStep = kThreads / 32 / kKeyWarps * kWarpRows;
  static constexpr int kTileRows = kRowBlocks * kBlockStep;

  // Keys and values travel in pieces of kTileKv keys and kPiece elements of each: 16 KiB, and 8 KiB where
  // that is all there is.
  static constexpr int kPiece = kIsFloat || kValueCols == 64 ? 64 : 128;
  static constexpr int kValuePieces = kValueCols / kPiece;
  // Pieces in shared memory: one in use, the others under way.
  static constexpr int kStages = kIsFloat ? 2 : kPiece == 64 ? 4 : 3;

  // Columns of 8 that a warp computes: of scores, and of values in a piece.
  static constexpr int kScoreCols = kTileKv / 8 / kKeyWarps;
  static constexpr int kPieceCols = kPiece / 8 / kKeyWarps;
  static constexpr int kOutputCols = kValuePieces * kPieceCols;

  // A row of float32 is 16 bytes longer, so that 8 rows lie in 32 banks; rows of 16-bit numbers have their
  // 16-byte chunks exchanged instead.
  static constexpr int kPad = kIsFloat ? 4 : 0;
  static constexpr int kPieceRow = kPiece + kPad;
  static constexpr int kWeightsRow = kTileKv + kPad;

  // Registers for this many blocks a multiprocessor: 64 or 128 accumulators a thread leave so many.
  static constexpr int kMinBlocks = kRowBlocks > 1 || kOutputCols >= 32 ? 2 : 3;
};

// Bytes from the beginning of a block's shared memory. What depends on the call comes last, so that the
// addresses of the rest are constants and take no registers.
struct SharedLayout {
  int task, tables, rows, exchange, quarters, staged, ring, weights, queries, size;
};

// Queries lie in pieces like keys', one after another: what a piece's product reads is at constants.
template <class C>
constexpr int num_pieces(int dim) {
  return (dim + C::kPiece - 1) / C::kPiece;
}

template <class C>
constexpr SharedLayout shared_layout(int tile_rows, int head_dim, int cache_element_size) {
  const int element = static_cast<int>(sizeof(typename C::Element));
  SharedLayout layout{};
  int at = 0;
  const auto take = [&at](int bytes) {
    const int from = at;
    at += (bytes + 127) / 128 * 128;
    return from;
  };
  layout.task = take(kTaskBytes);
  layout.tables = take(kTables * static_cast<int>(sizeof(TileTable)));
  layout.rows = take(C::kTileRows * kRowKeysBytes);
  // Maxima of each warp, and a quarter of the tile's sums of each thread.
  layout.exchange = take(C::kKeyWarps > 1 ? C::kKeyWarps * kWarpRows * 4 : 0);
  layout.quarters = take(C::kKeyWarps > 1 ? 2 * kThreads * 4 : 0);
  // A piece of 8 bits is converted while the one before it is used.
  layout.staged = take((C::kIsQuantised ? 2
                        : C::kIsStaged  ? 1
                                        : 0) *
                       kTileKv * C::kPieceRow * element);
  layout.ring =
      take(C::kStages * kTileKv * C::kPiece * (C::kIsStaged ? cache_element_size : element));
  // Weights go through shared memory where the warps of a row exchange them, or where a thread needs those
  // of other lanes one by one.
  const bool has_weights = C::kKeyWarps > 1 || C::kIsFloat;
  layout.weights = take(has_weights ? tile_rows * C::kWeightsRow * element : 0);
  layout.queries = take(num_pieces<C>(head_dim) * tile_rows * C::kPieceRow * element);
  layout.size = at;
  return layout;
}

}  // namespace pagefill::cuda
