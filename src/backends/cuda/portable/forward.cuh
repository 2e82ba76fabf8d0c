// The forward kernel: a block takes tasks until none is left. A task is a row tile of one KV head of one
// sequence against all of its keys, or one segment of them.
#pragma once

#include "backends/cuda/portable/softmax.cuh"

namespace pagefill::cuda {

template <class C>
struct Shared {
  typename C::Element* queries;
  char* ring;
  char* staged;
  char* weights;
  float* exchange;
  float* quarters;
  RowKeys* rows;
  Task* task;
  TileTable* tables;
  int piece_bytes;

  __device__ Shared(char* base, const Arguments& a) {
    const SharedLayout at = shared_layout<C>(a.tile_rows, a.keys.dim, a.cache_element_size);
    queries = reinterpret_cast<typename C::Element*>(base + at.queries);
    ring = base + at.ring;
    staged = base + at.staged;
    weights = base + at.weights;
    exchange = reinterpret_cast<float*>(base + at.exchange);
    quarters = reinterpret_cast<float*>(base + at.quarters);
    rows = reinterpret_cast<RowKeys*>(base + at.rows);
    task = reinterpret_cast<Task*>(base + at.task);
    tables = reinterpret_cast<TileTable*>(base + at.tables);
    piece_bytes = kTileKv * C::kPiece * (C::kIsStaged ? a.cache_element_size : 2);
  }
};

// The pieces of a task's tiles, one after another through a ring: two copies are under way while a piece is
// used (one of float32; three where pieces are small). A new one goes to the place of the piece that was used
// last; or, of a quantised cache, of the present one, which has been converted while its predecessor was used.
template <class C>
struct Pipeline {
  const Arguments& a;
  const Shared<C>& shared;
  int key_pieces, num_pieces;  // of keys, and of keys and values
  int first_value_col;
  int slot = 0;    // of the next piece
  int parity = 0;  // of the place that it is converted to

  static constexpr int kAheadPieces = C::kIsQuantised ? C::kStages : C::kStages - 1;

  __device__ __forceinline__ void issue(int tile, int piece, int to_slot) {
    while (piece >= num_pieces) piece -= num_pieces, ++tile;
    if (first_key_of(tile) < shared.task->any.end) {
      const TileTable& table = shared.tables[tile % kTables];
      const bool is_key = piece < key_pieces;
      copy_piece<C>(is_key ? a.keys : a.values, table, is_key ? table.keys : table.values,
                    is_key ? piece * C::kPiece : first_value_col + (piece - key_pieces) * C::kPiece,
                    a.cache_element_size, at(to_slot));
    }
    ptx::commit_copies();  // also where there is nothing more, so that groups count pieces
  }

  __device__ __forceinline__ void begin(int first_tile) {
    for (int i = 0; i < kAheadPieces; ++i) issue(first_tile, i, i);
    if constexpr (C::kIsQuantised) {
      ptx::wait_for_copies<kAheadPieces - 1>();
      __syncthreads();
      widen(0, 0, 0);
    }
  }

  // Piece `piece` of a tile, in the form that the products take, for all threads of the block to see.
  __device__ __forceinline__ char* next(int tile, int piece) {
    ptx::wait_for_copies<C::kStages - 2>();
    __syncthreads();
    const int before = slot == 0 ? C::kStages - 1 : slot - 1, now = slot;
    if (++slot == C::kStages) slot = 0;
    issue(tile, piece + kAheadPieces, C::kIsQuantised ? now : before);
    if constexpr (C::kIsQuantised) {
      widen(piece + 1 == num_pieces ? 0 : piece + 1, slot, parity ^ 1);
      parity ^= 1;
      return wide(parity ^ 1);
    } else if constexpr (C::kIsStaged) {
      stage_piece<C>(at(now), a.cache_dtype, a.cache_element_size,
                     reinterpret_cast<float*>(shared.staged));
      __syncthreads();
      return shared.staged;
    } else {
      return at(now);
    }
  }

 private:
  __device__ __forceinline__ char* at(int of_slot) const {
    return shared.ring + of_slot * shared.piece_bytes;
  }
  __device__ __forceinline__ char* wide(int place) const {
    return shared.staged + place * (kTileKv * C::kPiece * 2);
  }
  __device__ __forceinline__ void widen(int piece, int from_slot, int to_place) const {
    using Element = typename C::Element;
    using Value = typename C::Value;
    if (std::is_same_v<Element, Value> || piece < key_pieces) {
      widen_piece<Element>(at(from_slot), a.cache_dtype, wide(to_place));
    } else {
      widen_piece<Value>(at(from_slot), a.cache_dtype, wide(to_place));
    }
  }
};

// The rows of one task, and what is known of them.
template <class C>
struct Block {
  float max[C::kRowBlocks][2];
  Sums sums[C::kRowBlocks];
  Outputs<C> output;
};

template <int kBlocks, int kCols>
__device__ __forceinline__ void clear(float (&blocks)[kBlocks][kCols][4]) {
#pragma unroll
  for (auto& block : blocks) {
#pragma unroll
    for (auto& col : block) {
#pragma unroll
      for (float& x : col) x = 0;
    }
  }
}

// Which rows and columns a thread has.
template <class C>
struct Place {
  int warp_row, key_warp, lane;
  __device__ Place()
      : warp_row(threadIdx.x / 32 / C::kKeyWarps * kWarpRows),
        key_warp(threadIdx.x / 32 % C::kKeyWarps),
        lane(threadIdx.x % 32) {}
  __device__ int row(int m, int r) const { return m * C::kBlockStep + warp_row + lane / 4 + 8 * r; }
  __device__ int first_score_col() const { return key_warp * C::kScoreCols; }
  __device__ int first_value_col() const { return key_warp * C::kPieceCols; }
  // Of the task's value columns.
  __device__ int column(int output_col) const {
    const int piece = output_col / C::kPieceCols, col = output_col % C::kPieceCols;
    return piece * C::kPiece + (first_value_col() + col) * 8 + lane % 4 * 2;
  }
};

// Weights to where the second product reads them: shared memory, or mma's a in registers.
template <class C>
__device__ __forceinline__ void place_weights(const Place<C>& place, const Shared<C>& shared,
                                              const float (&weights)[C::kScoreCols][4],
                                              uint32_t (&packed)[kTileKv / 16][4]) {
  if constexpr (C::kIsFloat) {
    float* const to = reinterpret_cast<float*>(shared.weights);
#pragma unroll
    for (int col = 0; col < C::kScoreCols; ++col) {
      const int key = (place.first_score_col() + col) * 8 + place.lane % 4 * 2;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        *reinterpret_cast<float2*>(to + place.row(0, r) * C::kWeightsRow + key) = {
            weights[col][2 * r], weights[col][2 * r + 1]};
      }
    }
    __syncwarp();
  } else {
    using T = typename C::Value;
#pragma unroll
    for (int step = 0; step < C::kScoreCols / 2; ++step) {
      const float(&low)[4] = weights[2 * step], (&high)[4] = weights[2 * step + 1];
      packed[step][0] = pack<T>(low[0], low[1]);
      packed[step][1] = pack<T>(low[2], low[3]);
      packed[step][2] = pack<T>(high[0], high[1]);
      packed[step][3] = pack<T>(high[2], high[3]);
    }
    if constexpr (C::kKeyWarps > 1) {
      reinterpret_cast<uint4*>(shared.weights)[place.key_warp * 32 + place.lane] = {
          packed[0][0], packed[0][1], packed[0][2], packed[0][3]};
    }
  }
}

// What the other warps have put there. They have passed a barrier since.
template <class C>
__device__ __forceinline__ void take_weights(const Place<C>& place, const Shared<C>& shared,
                                             uint32_t (&packed)[kTileKv / 16][4]) {
  if constexpr (!C::kIsFloat && C::kKeyWarps > 1) {
#pragma unroll
    for (int step = 0; step < kTileKv / 16; ++step) {
      const uint4 w = reinterpret_cast<const uint4*>(shared.weights)[step * 32 + place.lane];
      packed[step][0] = w.x, packed[step][1] = w.y, packed[step][2] = w.z, packed[step][3] = w.w;
    }
  }
}

template <class C, int kBlocks, int kPiece>
__device__ __forceinline__ void add_values(const Arguments& a, const Shared<C>& shared,
                                           const Place<C>& place, bool has_rows,
                                           Pipeline<C>& pipeline, Block<C>& block,
                                           PackedWeights<C>& packed, int tile) {
  if constexpr (kPiece < C::kValuePieces) {
    const int num_dims =
        a.values.dim - pipeline.first_value_col - kPiece * C::kPiece;  // may be 0 or less
    if (num_dims <= 0) return;
    char* const piece = pipeline.next(tile, pipeline.key_pieces + kPiece);
    if constexpr (kPiece == 0 && C::kKeyWarps > 1) add_quarters<C>(shared.quarters, block.sums[0]);
    const auto attended = [&](int m, int r) { return shared.rows[place.row(m, r)].attended; };
    const TileTable& table = shared.tables[tile % kTables];
    const bool must_select = (table.must_select[0] | table.must_select[1]) != 0;
    if constexpr (C::kIsFloat) {
      if (has_rows) {
        const KeyInterval rows[2] = {attended(0, 0), attended(0, 1)};
        add_values_float<C, kPiece>(
            block.output[0],
            reinterpret_cast<const float*>(shared.weights) + place.warp_row * C::kWeightsRow,
            reinterpret_cast<const float*>(piece), place.first_value_col(), must_select,
            first_key_of(tile), rows);
      }
    } else {
      if (kPiece == 0) take_weights(place, shared, packed[0]);
      using T = typename C::Value;
      constexpr int kBytes = kTileKv * C::kPiece * 2;
      const int thread = threadIdx.x;
      if (must_select && __syncthreads_or(finds_not_finite<T, kBytes, kThreads>(piece, thread))) {
#pragma unroll
        for (int m = 0; m < kBlocks; ++m) {
          const KeyInterval rows[2] = {attended(m, 0), attended(m, 1)};
          add_not_finite<C, kPiece>(block.output[m], packed[m], piece, place.first_value_col(),
                                    first_key_of(tile), rows);
        }
        __syncthreads();
        remove_not_finite<T, kBytes, kThreads>(piece, thread);
        __syncthreads();
      }
      constexpr int kCols = C::kPieceCols;
      const uint32_t values = ptx::shared_address(piece);
      if (kCols <= 8 || num_dims > 64) {
        add_values_mma<C, kPiece, kBlocks, kCols>(block.output, packed, values,
                                                  place.first_value_col());
      } else {
        add_values_mma<C, kPiece, kBlocks, 8>(block.output, packed, values, 0);
      }
    }
    add_values<C, kBlocks, kPiece + 1>(a, shared, place, has_rows, pipeline, block, packed, tile);
  }
}

}  // namespace pagefill::cuda
