// What the schedule knows of the SIMD code: plain memory and plain functions, one set of them for each
// instruction set. Scores are in units of log2(e): the softmax is computed with exp2.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>

#include "backends/cpu/config.h"
#include "geometry.h"
#include "pagefill/backend.h"
#include "problem.h"

namespace pagefill::cpu {

// Rows [row_begin, row_end) of one KV head of one sequence; row r is query head
// kv_head * group + r % group of token r / group of the chunk.
struct Block {
  int64_t sequence = 0;
  int64_t kv_head = 0;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  SequenceGeometry seq;

  int64_t num_rows() const { return row_end - row_begin; }
};

// The softmax so far of a block's rows: out = acc / sum, lse = max + log2(sum). The identity is max -inf,
// sum 0, acc 0.
struct State {
  float* max = nullptr;  // [rows]
  float* sum = nullptr;  // [rows]
  float* acc = nullptr;  // [rows][value stride]
};

// One worker's memory for one block. Row tiles follow one another; a tile of n rows keeps its queries as
// [head_dim][n]. Operands that are pairs of bfloat16 share a float: half as many units. Few rows have
// tiles of few_rows_together rows, and scores [rows][kTileKv]; AMX has queries [rows][head_dim], scores
// [rows][kAmxTileKv], keys [head_dim / 2][kAmxTileKv], and values in as much memory as the others.
struct Scratch {
  float* queries = nullptr;           // [rows * head_dim], multiplied by the score factor; or pairs
  int32_t* attended_begin = nullptr;  // [rows]: keys that take part
  int32_t* attended_end = nullptr;    // [rows]
  int32_t* visible_begin = nullptr;   // [rows]: keys that take part without mask_value
  int32_t* visible_end = nullptr;     // [rows]
  float* scores = nullptr;   // [kTileKv][tile rows] (few rows: [rows][kTileKv]), then the weights
  float* rescale = nullptr;  // [tile rows]: of the accumulators, for the tile at hand
  float* keys = nullptr;     // [kTileKv][head_dim], where the cache is not float32
  const void** key_rows = nullptr;  // [kTileKv]
  float* values = nullptr;          // blocks of columns, each [kTileKv][columns]
  State total;
  State part;
};

// Rows of the row tile that begins where `rows_left` rows (whole vectors) are left: the widest, but two of
// two vectors rather than one of three and one of one, whose 4 accumulators (of 16 registers) would wait
// for each other.
constexpr int64_t tile_rows(int64_t rows_left, int64_t lanes) {
  const int64_t vectors = rows_left / lanes;
  return lanes * (vectors == kMaxRowVectors + 1 ? 2 : std::min<int64_t>(kMaxRowVectors, vectors));
}

struct Kernel {
  const char* target;
  int64_t lanes;    // float32 lanes of a vector
  int64_t tile_kv;  // keys of its KV tiles, at most

  // Queries into `scratch`, with each row's ranges of keys.
  void (*load_queries)(const Problem&, const Block&, const Scratch&);
  // The state of the block over one segment's keys, from the identity. The worker goes on with those of
  // `reach` behind them, and so fetches them ahead.
  void (*attend_segment)(const Problem&, const Block&, KeyRange segment, KeyRange reach,
                         const Scratch&, const State&);
  // total = total merged with part, in this order.
  void (*merge)(const Problem&, const Block&, const State& total, const State& part);
  // Sinks, division, rounding; writes output and lse.
  void (*write_output)(const Problem&, const Block&, const State&);

  int64_t max_tile_rows() const { return kMaxRowVectors * lanes; }
  int64_t padded_rows(int64_t num_rows) const { return round_up(num_rows, lanes); }
  int64_t value_stride(const Problem& p) const { return round_up(p.v_head_dim, lanes); }
};

// Whether the next KV tile is asked for into the first-level cache of this machine, not the second.
bool fetches_near();

// The targets that were compiled in, best first.
std::span<const TargetInfo> kernel_targets();

// The kernel of an available target.
const Kernel& find_kernel(std::string_view target);

}  // namespace pagefill::cpu
