// What the kernels get: plain numbers and pointers, by value.
#pragma once

#include <cstdint>

#include "geometry.h"
#include "pagefill/tensor.h"

namespace pagefill::cuda {

// int32 numbers on the device.
struct Integers {
  const int32_t* data = nullptr;
  int64_t stride = 0;

#ifdef __CUDACC__
  __device__ int32_t operator[](int64_t i) const { return data[i * stride]; }
#endif
};

// Quotients by a number that many threads divide by, as a product.
struct Divisor {
  uint32_t multiplier = 0;
  int shift = 0;
  int32_t by = 0;

  Divisor() = default;
  explicit Divisor(int32_t number) : shift(31), by(number) {
    while (int64_t{1} << (shift - 31) < by) ++shift;  // the product is off by less than 1 / by
    multiplier = static_cast<uint32_t>((uint64_t{1} << shift) / static_cast<uint32_t>(by) + 1);
  }
#ifdef __CUDACC__
  // Of 0 <= x < 2^31.
  __device__ int32_t quotient(int32_t x) const {
    return static_cast<int32_t>(uint64_t{static_cast<uint32_t>(x)} * multiplier >> shift);
  }
  // Of any x >= 0, which is to be what is left.
  __device__ int64_t take_quotient(int64_t& x) const {
    const int64_t q = x >> 31 == 0 ? quotient(static_cast<int32_t>(x)) : x / by;
    x -= q * by;
    return q;
  }
#endif
};

// query, output or lse: element strides of a token and of a head.
struct Rows {
  void* data = nullptr;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
  int vector_bytes = 0;  // every row begins at a multiple of it: 16, 4, or an element's size
};

// key_cache or value_cache with its scales.
struct CacheView {
  const void* data = nullptr;
  int64_t head_stride = 0, page_stride = 0, slot_stride = 0;
  const float* scale = nullptr;  // null: 1
  int64_t scale_head_stride = 0, scale_page_stride = 0, scale_slot_stride = 0;
  int dim = 0;
  int vector_bytes = 0;  // every slot begins at a multiple of it: 16, 8, 4, or an element's size
};

// What the schedule kernel finds out about a sequence.
struct SequencePlan {
  int32_t query_start, num_rows, context_len, kv_start;
  int64_t first_task;     // of all tasks
  int64_t first_state;    // of the partial states
  int64_t first_row;      // of the split rows
  int32_t num_tiles;      // row tiles,
  int32_t num_split;      // of which the first ones are split,
  int32_t num_parts;      // each into so many tasks,
  int32_t part_segments;  // of so many segments; the last one has the rest
  int32_t first_segment, num_segments;
  int32_t is_bad;  // its rows are NaN

  template <typename Int = int64_t>
  __host__ __device__ BasicSequenceGeometry<Int> geometry() const {
    return {query_start, num_rows, context_len, kv_start};
  }
};

// At the workspace's beginning.
struct ScheduleHeader {
  unsigned long long next_task;
  int64_t num_tasks;
  int64_t num_split_rows;  // (token, query head) pairs
  int32_t is_bad;          // query_starts makes no sense: all rows are NaN
};

struct Workspace {
  ScheduleHeader* header = nullptr;
  SequencePlan* sequences = nullptr;  // [num_seqs]
  float* totals = nullptr;            // accumulators of each block between segments
  float2* partial_states = nullptr;   // (max, sum) of each state of a split row
  float* partial_values = nullptr;    // [num_states, value_stride]
  int64_t num_states = 0;
  int value_stride = 0;
};

// cap * tanh(x), x being a constant times a number: the product of query and key where the constant leaves all of
// these normal numbers, so that no operation is needed for it; else the score over the cap, and the constant is 1.
struct SoftCap {
  float cap = 0;       // in units of log2; 0: none
  float odd[5] = {};   // coefficients of the number and its odd powers, where |x| < kSmallTanh
  float exponent = 0;  // e^2x is 2^(exponent * number)
};
inline constexpr float kSmallTanh = 0.6f;

struct Arguments {
  Rows query, output, lse;
  CacheView keys, values;
  Integers query_starts, context_lens, kv_start;
  const int32_t* page_table = nullptr;
  int64_t table_seq_stride = 0, table_entry_stride = 0;
  const float* sinks = nullptr;
  int64_t sinks_stride = 0;
  int32_t* status = nullptr;
  Workspace workspace;

  int64_t num_seqs = 0, total_tokens = 0;
  int64_t max_chunk_size = 0, max_context_len = 0;
  int64_t total_num_pages = 0;
  int32_t max_pages = 0, page_size = 0;
  Divisor page_size_divisor, group_divisor, kv_head_divisor, value_part_divisor;
  int num_q_heads = 0, num_kv_heads = 0, group = 0;
  int num_value_parts = 1;        // of the value columns, each with tasks of its own
  int tile_rows = 0;              // rows of a row tile
  int num_blocks = 0;             // of the forward kernel
  bool schedules_itself = false;  // it makes the schedule, and no kernel before it does
  int part_segments = 1;          // of a split tile that a task may have, at most
  DType query_dtype = DType::kFloat32, cache_dtype = DType::kFloat32;
  int cache_element_size = 0;

  // Scores in units of log2: s = score_factor * dot, and the soft cap of that. Where nothing comes between a
  // score and its weight, and the factor is above 0, it is weight_factor instead, and one fused operation with
  // the subtraction of the maximum; else weight_factor is 1.
  float score_factor = 0;
  SoftCap soft_cap;
  float weight_factor = 1;
  float mask_value = 0;  // in units of log2, where masked keys count
  // Weights are 2^weight_shift times what they should be until the row is written: float16 has 2^-24 as its
  // smallest number and 2^15 as a large one, so that a weight loses bits below 2^-29 and not below 2^-14.
  int weight_shift = 0;
  MaskRule mask;
  MaskRule32 row_mask;  // the same for positions, which int32 holds
};

// New keys or new values, and their cache.
struct AppendRows {
  const void* tokens = nullptr;
  int64_t token_stride = 0, token_head_stride = 0;
  void* cache = nullptr;
  int64_t cache_head_stride = 0, cache_page_stride = 0, cache_slot_stride = 0;
  const float* scale = nullptr;  // null: 1
  int64_t scale_head_stride = 0, scale_page_stride = 0, scale_slot_stride = 0;
  float* chosen_scale = nullptr;  // or null: not chosen
  int64_t chosen_head_stride = 0, chosen_page_stride = 0, chosen_slot_stride = 0;
  int dim = 0;
};

struct AppendArguments {
  AppendRows keys, values;
  Integers query_starts, context_lens, kv_start;
  const int32_t* page_table = nullptr;
  int64_t table_seq_stride = 0, table_entry_stride = 0;
  int32_t* status = nullptr;
  int64_t num_seqs = 0, total_tokens = 0, total_num_pages = 0, max_pages = 0, page_size = 0;
  int num_kv_heads = 0;
  DType tokens_dtype = DType::kFloat32, cache_dtype = DType::kFloat32;
  int tokens_element_size = 0, cache_element_size = 0;
};

// The rows of a cache, or of its scales; in bytes.
struct CopyRows {
  char* data = nullptr;  // null: not given
  int64_t head_stride = 0, page_stride = 0, slot_stride = 0;
  int64_t row_bytes = 0;
  int vector_bytes = 0;  // rows begin at, and are, multiples of it
};

struct Copy {
  int32_t source, destination, num_slots;
};

// As many copies as fit a kernel's arguments; none needs another's result.
struct CopyArguments {
  static constexpr int kMaxCopies = 128;
  CopyRows rows[4];  // keys, values, and their scales
  int num_kv_heads = 0, num_copies = 0;
  Copy copies[kMaxCopies];
};

// Copies that stand on the device.
struct ListedCopyArguments {
  CopyRows rows[4];  // keys, values, and their scales
  int num_kv_heads = 0;
  const int32_t* listed = nullptr;
  int64_t copy_stride = 0, number_stride = 0, num_copies = 0;
  int64_t total_num_pages = 0, page_size = 0;
  int32_t* status = nullptr;
};

struct MergeArguments {
  Rows output_a, lse_a, output_b, lse_b, output, lse;
  int64_t num_rows = 0;
  int64_t num_q_heads = 0, v_head_dim = 0;
  DType dtype = DType::kFloat32;
  int element_size = 0;
};

}  // namespace pagefill::cuda
