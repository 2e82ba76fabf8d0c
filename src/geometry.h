// Arithmetic of positions: which keys a row sees, which pages hold them. Shared by validation and all
// backends; constexpr, no memory is touched.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace pagefill {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int64_t round_down(int64_t a, int64_t b) { return a / b * b; }

// Half-open range of absolute key positions. Int: int64_t, or int32_t where all positions of a call fit it.
template <typename Int>
struct BasicKeyRange {
  Int begin = 0;
  Int end = 0;
  constexpr bool empty() const { return begin >= end; }
  constexpr Int size() const { return empty() ? 0 : end - begin; }
  friend constexpr bool operator==(const BasicKeyRange&, const BasicKeyRange&) = default;
};
using KeyRange = BasicKeyRange<int64_t>;
using KeyRange32 = BasicKeyRange<int32_t>;

template <typename Int>
constexpr BasicKeyRange<Int> intersect(BasicKeyRange<Int> a, BasicKeyRange<Int> b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

// Where one sequence of a call stands.
template <typename Int>
struct BasicSequenceGeometry {
  Int query_start = 0;  // its first row in the batch
  Int num_rows = 0;     // its chunk_size
  Int context_len = 0;
  Int kv_start = 0;  // absolute position of the page table's first slot

  // Absolute position of row i of the chunk; negative where the chunk is longer than the context.
  constexpr Int position(Int i) const { return context_len - num_rows + i; }
};
using SequenceGeometry = BasicSequenceGeometry<int64_t>;
using SequenceGeometry32 = BasicSequenceGeometry<int32_t>;

// How a call masks.
template <typename Int>
struct BasicMaskRule {
  static constexpr Int kNoWindow = std::numeric_limits<Int>::max();
  Int sliding_window = kNoWindow;
  bool masked_keys_count = false;  // mask_value above kMaskExcludes: they get mask_value added

  // The keys that the causal rule and the window let a row at `position` see.
  constexpr BasicKeyRange<Int> visible(const BasicSequenceGeometry<Int>& seq, Int position) const {
    if (position < 0) return {};
    // position - window + 1 without overflow: the window may be any Int.
    const Int window_begin = sliding_window > position ? 0 : position - sliding_window + 1;
    return {std::max(seq.kv_start, window_begin), std::min(Int(position + 1), seq.context_len)};
  }

  // The keys that a row takes into its softmax: the visible ones, or all of the context where masked
  // keys count. A row before the context (position < 0) has none.
  constexpr BasicKeyRange<Int> attended(const BasicSequenceGeometry<Int>& seq, Int position) const {
    if (position < 0) return {};
    if (masked_keys_count) return {seq.kv_start, seq.context_len};
    return visible(seq, position);
  }

  // The keys that rows [row_begin, row_end) of the chunk take, all together. Positions grow with the
  // row, so the first row with a position begins the range and the last one ends it.
  constexpr BasicKeyRange<Int> attended(const BasicSequenceGeometry<Int>& seq, Int row_begin,
                                        Int row_end) const {
    const Int first = std::max(row_begin, Int(seq.num_rows - seq.context_len));
    if (first >= row_end) return {};
    return {attended(seq, seq.position(first)).begin, attended(seq, seq.position(row_end - 1)).end};
  }
};
using MaskRule = BasicMaskRule<int64_t>;
using MaskRule32 = BasicMaskRule<int32_t>;
inline constexpr int64_t kNoWindow = MaskRule::kNoWindow;

// (query, key) pairs that are attended in a chunk; what `bench` counts as useful work.
constexpr int64_t attended_pairs(const MaskRule& mask, const SequenceGeometry& seq) {
  int64_t pairs = 0;
  for (int64_t i = 0; i < seq.num_rows; ++i) pairs += mask.attended(seq, seq.position(i)).size();
  return pairs;
}

}  // namespace pagefill
