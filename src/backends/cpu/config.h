// The numbers of the CPU backend, and why.
#pragma once

#include <cstdint>

namespace pagefill::cpu {

// Keys of a KV tile. 64 keys of head_dim 128 in float32 are 32 KiB: with the row tile's scores and
// queries they stay in an L2 of 512 KiB, and the softmax of a tile amortises its rescale over 64 keys.
// A tile begins at an absolute multiple of it, whatever the chunk, so every row adds its keys in the same
// order.
inline constexpr int64_t kTileKv = 64;

// Keys of a segment, the range that one worker may reduce alone. Part of the order of summation of every
// row, split or not, so that the bits do not depend on the number of threads. 1024 keys let 16 threads
// share a decode row of 8 KV heads at 4096 keys in 32 equal parts, and cost a merge of v_head_dim numbers
// a row for 1024 * head_dim products.
inline constexpr int64_t kSegmentKv = 16 * kTileKv;

// Vectors of rows of the widest row tile. 4 keys x 3 vectors are 12 accumulators, with 3 vectors of
// queries and a broadcast key the 16 registers of AVX2; 12 chains hide an FMA latency of 4 at 2 a cycle.
inline constexpr int kMaxRowVectors = 3;

// Keys that are scored together, and the granule of everything along the keys of a tile.
inline constexpr int64_t kKeyStep = 4;

// Vectors of columns of a block of values: 6 rows x 2 vectors are 12 accumulators again.
inline constexpr int kValueVectors = 2;

// Row tiles of a block share the staged values and walk the same keys. More tiles amortise the staging
// (1 / (2 * rows) of the arithmetic), fewer keep queries and accumulators of a block in the L2.
inline constexpr int64_t kMaxRowTiles = 8;
inline constexpr int64_t kMaxBlockBytes = 96 * 1024;  // of float32 queries, or of accumulators

}  // namespace pagefill::cpu
