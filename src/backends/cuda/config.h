// The numbers of the CUDA backend, and why.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pagefill::cuda {

// Keys of a KV tile; a tile begins at an absolute multiple of it, whatever chunk, page or window, so that
// every row adds its keys in the same order. 64 keys of 128 16-bit numbers are 16 KiB: with three of
// them in shared memory, and the queries, two blocks fit a Hopper multiprocessor, and three of few rows.
inline constexpr int kTileKv = 64;

// Keys of a segment, the least that a block may reduce alone; a part of every row's order of summation, split or
// not. 1024 keys give one decode row of 8 KV heads at 32768 keys 256 segments, enough for all multiprocessors; a row
// tile merges once in 16 KV tiles.
inline constexpr int kSegmentKv = 16 * kTileKv;

// Threads of a block: 4 warps. In a row tile of many rows each has 16 rows; in one of few rows all four
// share 16 rows, and each has a quarter of the tile's keys and of the values' columns.
inline constexpr int kThreads = 128;
inline constexpr int kWarpRows = 16;  // of mma.m16n8k16

// Tables of KV tiles (where its keys lie, its scales) that are held at once: of the present pair of tiles, and
// of the next, which is filled in while the even one of the present is used.
inline constexpr int kTables = 4;

// Partial states of split sequences take at most this much workspace; sequences beyond it are not split. 256 queries
// of 32 heads @ 32768 and 64 @ 131072 need 130 MiB.
inline constexpr int64_t kMaxPartialBytes = int64_t{256} << 20;

// A sequence may be split into segments where a row tile of it has more than 1 / (4 * blocks) of the work,
inline constexpr int64_t kTasksPerBlock = 4;
// and is not where that ends within so many per cent of all work's even share: a split tile's partial states
// are written, read and merged, and a block begins and ends a task for each.
inline constexpr int64_t kMostOverAverage = 115;

}  // namespace pagefill::cuda
