// The numbers of the CPU backend, and why.
#pragma once

#include <cstdint>

namespace pagefill::cpu {

// Keys of a KV tile. 64 keys of head_dim 128 in float32 are 32 KiB: with the row tile's scores and
// queries they stay in an L2 of 512 KiB, and the softmax of a tile amortises its rescale over 64 keys.
// A tile begins at an absolute multiple of it, whatever the chunk, so every row adds its keys in the same
// order.
inline constexpr int64_t kTileKv = 64;
// With AMX, which multiplies faster than the L2 cache gives and takes accumulators: it meets each of them half
// as often. Against 64, on a Xeon, bfloat16, head dim 128: 1.20 times as fast on one thread, 1.11 to 1.15 on 16
// (512 @ 4096, 2048 @ 8192); one row @ 32768 takes 3 % longer.
inline constexpr int64_t kAmxTileKv = 128;
inline constexpr int64_t kMaxTileKv = kAmxTileKv;

// Keys of a segment, the range that one worker may reduce alone. Part of the order of summation of every
// row, split or not, so that the bits do not depend on the number of threads. 1024 keys let 16 threads
// share a decode row of 8 KV heads at 4096 keys in 32 equal parts, and cost a merge of v_head_dim numbers
// a row for 1024 * head_dim products.
inline constexpr int64_t kSegmentKv = 16 * kTileKv;

// Vectors of rows of the widest row tile.
inline constexpr int kMaxRowVectors = 3;

// What a target's registers hold. Scores: accumulators of `keys` x kMaxRowVectors, with kMaxRowVectors
// vectors of queries and a broadcast key. Values: value_rows x value_vectors accumulators, with
// value_vectors vectors of values and a broadcast weight. 12 chains hide an FMA latency of 4 at 2 a cycle;
// 24 halve the loads for each multiply-add.
struct Blocking {
  int keys;
  int value_rows;
  int value_vectors;
};
inline constexpr Blocking kRegisters16{4, 6, 2};  // 12 + 3 + 1 = 16; 12 + 2 + 1 = 15
inline constexpr Blocking kRegisters32{8, 6, 4};  // 24 + 3 + 1 = 28; 24 + 4 + 1 = 29

// Rows in lanes take the keys of a tile in steps of 8.
inline constexpr int64_t kKeyStep = 8;
// The most keys that any of the loops over keys takes at once (AMX).
inline constexpr int64_t kMaxKeyStep = 32;

// Up to this many rows, lanes are keys (few_rows-inl.h).
inline constexpr int64_t kFewRows = 16;

// Row tiles of a block share the staged values and walk the same keys: more of them amortise the staging,
// fewer keep the block's queries and its accumulators, at most a quarter of the second-level cache each,
// beside the KV tile and the next one. Measured on Zen 4 (1 MiB), share of peak at 512 @ 4096 (head dim 256:
// @ 2048) for 96, 192, 256 KiB: head dim 64 80, 82, 84; 128 86, 88, 86 to 87; 256 83, 86, 88 %.
inline constexpr int64_t kMaxRowTiles = 16;
inline constexpr int64_t kMinBlockBytes = 96 * 1024;  // of float32 queries, or of accumulators
inline constexpr int64_t kMaxBlockBytes = 256 * 1024;

}  // namespace pagefill::cpu
