// What a forward kernel of wgmma is compiled for, and its shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backends/cuda/config.h"

namespace pagefill::cuda::sm90 {

// A warpgroup is what wgmma works with: four warps, 64 rows.
inline constexpr int kGroupThreads = 128;
inline constexpr int kGroupRows = 64;

// One warpgroup loads, kConsumers compute. 64 elements are a part: 128 bytes, the longest row that shared
// memory's swizzle knows. kHeadDim is a multiple of a part; keys and values that are narrower are filled up
// with zeros on their way.
template <typename ElementType, int kHeadDim_, int kConsumers_>
struct Config {
  using Element = ElementType;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kParts = kHeadDim / 64;
  static constexpr int kConsumers = kConsumers_;
  static constexpr int kConsumerThreads = kConsumers * kGroupThreads;
  static constexpr int kThreads = kGroupThreads + kConsumerThreads;
  static constexpr int kTileRows = kConsumers * kGroupRows;

  // Keys of a KV tile, a part of every row's order of summation: the same for every number of consumers.
  // 128 keys of 256 numbers would leave no room for two stages.
  static constexpr int kTileKv = kHeadDim <= 128 ? 128 : 64;
  static constexpr int kSegmentTiles = kSegmentKv / kTileKv;
  static constexpr int kScoreCols = kTileKv / 8;  // columns of 8, 4 numbers of which a thread has
  static constexpr int kOutputCols = kHeadDim / 8;
  // What a producer warp brings of a tile: by boxes half of its keys or of its values, else a quarter of both.
  static constexpr int kHalfKeys = kTileKv / 2, kQuarterKeys = kTileKv / 4;

  // Few rows, which are bound by memory, have no boxes: 16 sequences of one row @ 32768 read 4.23 TB/s by cp.async
  // (pages of 1) and 3.97 by boxes (pages of 16), in one run on an H200.
  static constexpr int kMostBoxRows = kConsumers > 1 ? kHalfKeys : 0;

  static constexpr int kPartBytes = kTileKv * 128;
  static constexpr int kTileBytes = kParts * kPartBytes;
  static constexpr int kQueryPartBytes = kTileRows * 128;
  static constexpr int kQueryBytes = kParts * kQueryPartBytes;
  // Tasks of few rows are short: the next one's keys are not to wait until the last scores of this are done.
  static constexpr int kQueryBuffers = kConsumers == 1 && kHeadDim <= 128 ? 2 : 1;

  // What the segments so far have come to lies in shared memory where it fits beside two stages, else in the
  // workspace. With a third stage and the workspace, one row took 1.2 times as long.
  static constexpr bool kTotalsAreShared = kHeadDim <= 128;
  static constexpr int kTotalBytes = kTileRows * kHeadDim * 4;
  static constexpr int kStageBytes = 2 * kTileBytes;
  static constexpr int kMostBytes = 224 * 1024;  // of 227 KiB; the rest is for barriers and tasks
  static constexpr int kStages =
      (kMostBytes - kQueryBuffers * kQueryBytes - (kTotalsAreShared ? kTotalBytes : 0)) /
      kStageBytes;
  static_assert(kStages >= 2);

  // Registers of a thread, in multiples of 8. A block has 3 * 168 of them for each thread of a warpgroup, and what
  // it asks for beyond that never comes. Where one warpgroup computes, both have 255 and need not share. At head dim
  // 128 consumers spill with 216 (170 bytes); producers spill with 56, but not in what they do for each tile.
  static constexpr bool kSharesRegisters = kConsumers > 1;
  static constexpr int kConsumerRegisters = kHeadDim <= 64 ? 208 : 224;
  static constexpr int kProducerRegisters = 3 * 168 - 2 * kConsumerRegisters;
};

}  // namespace pagefill::cuda::sm90
