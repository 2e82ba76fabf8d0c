// Logical data laid out in memory, as hostile as one likes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "pagefill/attention.h"
#include "support/buffer.h"
#include "support/problem.h"

namespace pagefill::testing {

enum class CacheOrder {
  kHeadMajor,         // [num_kv_heads, pages, page_size, head_dim], two tensors
  kTokenMajor,        // [pages, page_size, num_kv_heads, head_dim], two tensors
  kInterleavedSlots,  // [pages, page_size, num_kv_heads, head_dim + v_head_dim], one buffer
  kInterleavedPages,  // [pages, 2, page_size, num_kv_heads, head_dim], one buffer
};

inline constexpr CacheOrder kCacheOrders[] = {CacheOrder::kHeadMajor, CacheOrder::kTokenMajor,
                                              CacheOrder::kInterleavedSlots,
                                              CacheOrder::kInterleavedPages};

// What all memory holds that no visible key needs. With kOldTokens, the keys that the rows do not
// see (before a window) are where they were, all table entries are good, and the rest is zeros;
// with all others such slots are filled, their pages freed, and the table entries that are not
// needed are bad.
enum class Unused { kOldTokens, kNaN, kInfinity, kNegativeInfinity };

struct Layout {
  int64_t page_size = 16;
  CacheOrder cache_order = CacheOrder::kHeadMajor;
  uint32_t placement = 0;           // seed of the pages' permutation; 0: in order
  int64_t extra_pages = 0;          // pages that belong to nobody
  int64_t extra_table_entries = 0;  // of each sequence, behind those it needs
  int64_t padding_rows = 0;         // rows of query and output behind the last sequence
  int64_t gap = 0;                  // elements of nobody behind every head of every tensor
  bool heads_outermost = false;     // query, output and lse as [num_q_heads, tokens, ...]
  Unused unused = Unused::kOldTokens;
  Guard guard = Guard::kBehind;
};

std::string describe(const Layout& layout);

// Rows [row_begin, row_end) of a sequence: one chunk.
struct Chunk {
  int64_t sequence = 0;
  int64_t row_begin = 0;
  int64_t row_end = 0;
};

// The arguments of one call, and the memory behind them. What is only read is write-protected; what
// is written is full of canaries. Memory ends right behind the last byte that the call needs.
struct Arguments {
  TensorView query, key_cache, value_cache, query_starts, context_lens, page_table;
  AttentionOptions options;
  AttentionOutput output{MutableTensorView()};
  std::vector<GuardedBuffer> memory;
  GuardedBuffer output_memory, lse_memory;
};

// The call that attends with these chunks: each sequence's context ends with its chunk.
Arguments lay_out(const Problem& problem, std::span<const Chunk> chunks, const Layout& layout);

inline constexpr std::byte kCanary{0xA5};

}  // namespace pagefill::testing
