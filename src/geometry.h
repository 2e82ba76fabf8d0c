// Arithmetic of positions: which keys a row sees, which pages hold them. Shared by validation and all
// backends; constexpr, no memory is touched.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace pagefill {

inline constexpr int64_t kNoWindow = std::numeric_limits<int64_t>::max();

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int64_t round_down(int64_t a, int64_t b) { return a / b * b; }

// Half-open range of absolute key positions.
struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;
  constexpr bool empty() const { return begin >= end; }
  constexpr int64_t size() const { return empty() ? 0 : end - begin; }
  friend constexpr bool operator==(const KeyRange&, const KeyRange&) = default;
};

constexpr KeyRange intersect(KeyRange a, KeyRange b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

// Where one sequence of a call stands.
struct SequenceGeometry {
  int64_t query_start = 0;  // its first row in the batch
  int64_t num_rows = 0;     // its chunk_size
  int64_t context_len = 0;
  int64_t kv_start = 0;  // absolute position of the page table's first slot

  // Absolute position of row i of the chunk; negative where the chunk is longer than the context.
  constexpr int64_t position(int64_t i) const { return context_len - num_rows + i; }
};

// How a call masks.
struct MaskRule {
  int64_t sliding_window = kNoWindow;
  bool masked_keys_count = false;  // mask_value above kMaskExcludes: they get mask_value added

  // The keys that the causal rule and the window let a row at `position` see.
  constexpr KeyRange visible(const SequenceGeometry& seq, int64_t position) const {
    if (position < 0) return {};
    // position - window + 1 without overflow: the window may be any int64.
    const int64_t window_begin = sliding_window > position ? 0 : position - sliding_window + 1;
    return {std::max(seq.kv_start, window_begin), std::min(position + 1, seq.context_len)};
  }

  // The keys that a row takes into its softmax: the visible ones, or all of the context where masked
  // keys count. A row before the context (position < 0) has none.
  constexpr KeyRange attended(const SequenceGeometry& seq, int64_t position) const {
    if (position < 0) return {};
    if (masked_keys_count) return {seq.kv_start, seq.context_len};
    return visible(seq, position);
  }

  // The keys that rows [row_begin, row_end) of the chunk take, all together. Positions grow with the
  // row, so the first row with a position begins the range and the last one ends it.
  constexpr KeyRange attended(const SequenceGeometry& seq, int64_t row_begin,
                              int64_t row_end) const {
    const int64_t first = std::max(row_begin, seq.num_rows - seq.context_len);
    if (first >= row_end) return {};
    return {attended(seq, seq.position(first)).begin, attended(seq, seq.position(row_end - 1)).end};
  }
};

// (query, key) pairs that are attended in a chunk; what `bench` counts as useful work.
constexpr int64_t attended_pairs(const MaskRule& mask, const SequenceGeometry& seq) {
  int64_t pairs = 0;
  for (int64_t i = 0; i < seq.num_rows; ++i) pairs += mask.attended(seq, seq.position(i)).size();
  return pairs;
}

}  // namespace pagefill
