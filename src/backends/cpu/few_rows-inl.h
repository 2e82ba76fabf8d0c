// Few rows (decode, short speculative chunks): lanes are keys. A tile of rows in lanes would leave most
// lanes idle, and stage values that hardly any row shares; here keys and values are read once, in place,
// whatever their dtype. The order of every sum is that of tile-inl.h, so the bits are those of prefill.
// Compiled once for each target whose vectors have a fixed size and that machines of today choose.
#if defined(PAGEFILL_CPU_FEW_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEFILL_CPU_FEW_ROWS_INL_H_
#undef PAGEFILL_CPU_FEW_ROWS_INL_H_
#else
#define PAGEFILL_CPU_FEW_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include "backends/cpu/blocks-inl.h"
#include "backends/cpu/config.h"
#include "backends/cpu/kernel.h"
#include "backends/cpu/math-inl.h"
#include "backends/cpu/stage-inl.h"
#include "backends/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pagefill::cpu {
namespace HWY_NAMESPACE {

#if !PAGEFILL_CPU_KEYS_IN_LANES
inline bool suits_few_rows(const Problem&, const Block&) { return false; }
inline int64_t few_rows_together(int64_t rows_left) { return rows_left; }
template <class T, class Dot>
void attend_few_rows(const Problem&, const Block&, KeyRange, KeyRange, float, const Scratch&,
                     const State&) {}
#else

// What the registers hold for so many rows, as in Blocking: vectors of keys to be scored together, beside
// their four units each, and vectors of columns.
struct FewRowsBlocking {
  int rows;
  int key_vectors;
  int value_vectors;
};
inline constexpr bool kHas32Registers = kBlocking.keys == kRegisters32.keys;
inline constexpr FewRowsBlocking kFewRowsBlocking[] = {
    {1, kHas32Registers ? 4 : 2, 8},
    {2, kHas32Registers ? 4 : 2, kHas32Registers ? 8 : 4},
    {4, kHas32Registers ? 2 : 1, kHas32Registers ? 4 : 2},
    {5, kHas32Registers ? 2 : 1, kHas32Registers ? 4 : 2},
    {6, kHas32Registers ? 2 : 1, kHas32Registers ? 4 : 2},
    {8, kHas32Registers ? 2 : 1, kHas32Registers ? 2 : 1},
};

inline constexpr int64_t kMaxRowsTogether = 8;

// No read goes past a row: keys come in pieces, values in whole vectors.
inline bool suits_few_rows(const Problem& p, const Block& block) {
  return block.num_rows() <= kFewRows &&
         p.head_dim * dtype_size(p.key_cache.dtype) % kPieceBytes == 0 &&
         p.v_head_dim % static_cast<int64_t>(hn::Lanes(FloatTag())) == 0;
}

// Rows that are computed together where `rows_left` rows are left: some may stand in for the last one. Their
// queries are [head_dim][rows].
constexpr int64_t few_rows_together(int64_t rows_left) {
  for (const FewRowsBlocking& shape : kFewRowsBlocking) {
    if (shape.rows >= rows_left) return shape.rows;
  }
  return kMaxRowsTogether;
}

// Rows that are computed for so many.
inline int64_t few_rows_computed(int64_t num_rows) {
  const int64_t whole = round_down(num_rows - 1, kMaxRowsTogether);
  return whole + few_rows_together(num_rows - whole);
}

// Calls visitor(integral_constant of the index) for the row of the table with the fewest rows that are not
// fewer than num_rows.
template <size_t kIndex = 0, class Visitor>
HWY_INLINE void with_few_rows(int64_t num_rows, const Visitor& visitor) {
  if constexpr (kIndex + 1 < std::size(kFewRowsBlocking)) {
    if (num_rows > kFewRowsBlocking[kIndex].rows)
      return with_few_rows<kIndex + 1>(num_rows, visitor);
  }
  visitor(std::integral_constant<size_t, kIndex>());
}

// How often one pass over a tile asks for some of the next one.
template <class T, class Dot>
int64_t fetches_of_few_rows(const Problem& p, int64_t num_rows, int64_t num_keys) {
  const int64_t lanes = hn::Lanes(FloatTag());
  const int64_t key_vectors = num_keys / lanes, value_vectors = p.v_head_dim / lanes;
  const int64_t units = p.head_dim * static_cast<int64_t>(sizeof(T)) / kUnitBytes;
  int64_t fetches = 0;
  const auto count = [&](int64_t rows) {
    with_few_rows(rows, [&]<size_t kIndex>(std::integral_constant<size_t, kIndex>) {
      constexpr int kKeys = kFewRowsBlocking[kIndex].key_vectors;
      constexpr int kValues = kFewRowsBlocking[kIndex].value_vectors;
      fetches += key_vectors / kKeys * (units / units_a_fetch(kKeys)) +
                 key_vectors % kKeys * (units / units_a_fetch(1)) +
                 value_vectors / kValues * (num_keys / Dot::kElements / keys_a_fetch<T>(kValues)) +
                 value_vectors % kValues * (num_keys / Dot::kElements / keys_a_fetch<T>(1));
    });
  };
  for (int64_t row = 0; row < num_rows; row += kMaxRowsTogether) {
    count(std::min(num_rows - row, kMaxRowsTogether));
  }
  return std::max<int64_t>(1, fetches);
}

// Keys [begin, end), whole vectors, against all rows of the block, and rows that stand in for them.
template <class T, class Dot>
HWY_INLINE void score_few_rows(const Problem& p, int64_t num_rows, const KvTile& kv, int64_t begin,
                               int64_t end, float factor, const Scratch& scratch,
                               FetchAhead& ahead) {
  const int64_t n = hn::Lanes(FloatTag());
  for (int64_t row = 0; row < num_rows; row += kMaxRowsTogether) {
    const float* queries = scratch.queries + row * p.head_dim;
    float* scores = scratch.scores + row * kTileKv;
    const auto score = [&]<size_t kIndex>(std::integral_constant<size_t, kIndex>) HWY_ATTR {
      constexpr FewRowsBlocking kShape = kFewRowsBlocking[kIndex];
      int64_t k = begin;
      for (; k + kShape.key_vectors * n <= end; k += kShape.key_vectors * n) {
        Blocks<Dot>::template score_row_keys<T, kShape.rows, kShape.key_vectors>(
            queries, p.head_dim, factor, kv.keys + k, ahead, scores + k);
      }
      for (; k < end; k += n) {
        Blocks<Dot>::template score_row_keys<T, kShape.rows, 1>(queries, p.head_dim, factor,
                                                                kv.keys + k, ahead, scores + k);
      }
    };
    with_few_rows(std::min(num_rows - row, kMaxRowsTogether), score);
  }
}

// So many keys of a tile, or fewer, are scored with rows in lanes: a context of one token, or the last tile's
// few.
inline constexpr int64_t kLoneKeys = 4;

// As score_few_rows; the scores of other keys than [kv.begin, kv.end) stay as they are.
template <class T, class Dot>
HWY_INLINE void score_lone_keys(const Problem& p, int64_t num_rows, const KvTile& kv, float factor,
                                const Scratch& scratch) {
  constexpr bool kInPlace = std::is_same_v<T, float> || Dot::kElements > 1;
  const int64_t n = hn::Lanes(FloatTag());
  const void* keys[kLoneKeys];
  for (int64_t k = 0; k < kLoneKeys; ++k) {
    const void* key = kv.keys[std::min(kv.begin + k, kv.end - 1)];
    if constexpr (!kInPlace) {
      float* row = scratch.keys + k * p.head_dim;
      if (kv.begin + k < kv.end) copy_row(static_cast<const T*>(key), p.head_dim, row);
      key = scratch.keys + std::min(k, kv.end - 1 - kv.begin) * p.head_dim;
    }
    keys[k] = key;
  }
  for (int64_t row = 0, together; row < num_rows; row += together) {
    together = few_rows_together(num_rows - row);
    const float* queries = scratch.queries + row * p.head_dim;
    float* scores = scratch.scores + row * kTileKv + kv.begin;
    const auto score = [&]<int kKeys>(std::integral_constant<int, kKeys>) HWY_ATTR {
      if (together > n) {
        Blocks<Dot>::template score_lone_keys<kKeys, 2>(queries, together, p.head_dim, factor, keys,
                                                        scores);
      } else {
        Blocks<Dot>::template score_lone_keys<kKeys, 1>(queries, together, p.head_dim, factor, keys,
                                                        scores);
      }
    };
    if (kv.end - kv.begin == 1) {
      score(std::integral_constant<int, 1>());
    } else {
      score(std::integral_constant<int, kLoneKeys>());
    }
  }
}

// As scale_by_key, select_scores and softmax for a row whose keys [begin, end), whole vectors, are in lanes.
HWY_INLINE void scale_row(float* HWY_RESTRICT scores, int64_t begin, int64_t end,
                          const float* scale) {
  const FloatTag d;
  for (int64_t k = begin; k < end; k += hn::Lanes(d)) {
    hn::Store(hn::Mul(hn::Load(d, scores + k), hn::LoadU(d, scale + k)), d, scores + k);
  }
}

template <bool kExclude>
HWY_INLINE void select_row(float* HWY_RESTRICT scores, int64_t begin, int64_t end, int64_t first,
                           int64_t last, float penalty) {
  const FloatTag d;
  const IntTag di;
  const FloatVec minus_infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int64_t k = begin; k < end; k += hn::Lanes(d)) {
    const auto key = hn::Iota(di, static_cast<int32_t>(k));
    const auto inside = hn::AndNot(hn::Lt(key, hn::Set(di, static_cast<int32_t>(first))),
                                   hn::Lt(key, hn::Set(di, static_cast<int32_t>(last))));
    const FloatVec s = hn::Load(d, scores + k);
    const FloatVec other = kExclude ? minus_infinity : hn::Add(s, hn::Set(d, penalty));
    hn::Store(hn::IfThenElse(hn::RebindMask(d, inside), s, other), d, scores + k);
  }
}

// kRows rows whose scores are kTileKv apart: each waits for its own chains, of maxima, of the exponential and of
// sums, and several together wait as long as one.
template <class Dot, int kRows>
HWY_INLINE void softmax_rows(float* HWY_RESTRICT scores, int64_t begin, int64_t end,
                             float* HWY_RESTRICT max, float* HWY_RESTRICT sum,
                             float* HWY_RESTRICT rescale) {
  const FloatTag d;
  const hn::FixedTag<float, 4> d4;
  const int64_t n = hn::Lanes(d);
  const FloatVec minus_infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
  FloatVec m[kRows], base[kRows], scale[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) m[r] = hn::Set(d, max[r]);
  for (int64_t k = begin; k < end; k += n) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) m[r] = hn::Max(m[r], hn::Load(d, scores + r * kTileKv + k));
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    m[r] = hn::MaxOfLanes(d, m[r]);
    base[r] = hn::IfThenZeroElse(hn::Eq(m[r], minus_infinity), m[r]);
    scale[r] = exp2_nonpositive(d, hn::Sub(hn::Set(d, max[r]), base[r]));
    max[r] = hn::GetLane(m[r]);
    rescale[r] = hn::GetLane(scale[r]);
  }
  for (int64_t k = begin; k < end; k += n) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      float* at = scores + r * kTileKv + k;
      hn::Store(exp2_nonpositive(d, hn::Sub(hn::Load(d, at), base[r])), d, at);
    }
  }
  hn::Vec<decltype(d4)> sums[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) sums[r] = hn::Zero(d4);
  for (int64_t k = begin; k < end; k += 4) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      sums[r] = hn::Add(sums[r], hn::Load(d4, scores + r * kTileKv + k));
    }
  }
  if constexpr (Dot::kElements == 2) {
    // In place: the numbers that are written over have been read.
    const hn::Repartition<uint16_t, FloatTag> d16;
    const hn::Half<decltype(d16)> half;
    for (int64_t k = begin; k < end; k += n) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        float* row = scores + r * kTileKv;
        const FloatVec w = hn::Load(d, row + k);
        hn::Store(hn::LowerHalf(half, Dot::round(w, w)), half,
                  reinterpret_cast<uint16_t*>(row) + k);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    HWY_ALIGN float s[4];
    hn::Store(sums[r], d4, s);
    const FloatVec added = hn::Set(d, (s[0] + s[2]) + (s[1] + s[3]));
    sum[r] = hn::GetLane(hn::MulAdd(hn::Set(d, sum[r]), scale[r], added));
  }
}

// The scores of rows [row, row + kRows) of the block, of the keys [begin, end) of a tile, whole vectors, become
// their weights; row r takes the keys keys[r] of the tile.
template <class Dot, int kRows>
HWY_INLINE void weigh_rows(const Problem& p, const KvTile& kv, int64_t row, const KeyRange* keys,
                           int64_t begin, int64_t end, const Scratch& scratch, const State& state) {
  const bool quantised = is_quantised(p.key_cache.dtype);
  for (int64_t r = row; r < row + kRows; ++r) {
    float* HWY_RESTRICT scores = scratch.scores + r * kTileKv;
    if (quantised) scale_row(scores, begin, end, kv.key_scale);
    if (p.attn_logits_soft_cap) {
      soft_cap_scores(scores + begin, end - begin, *p.attn_logits_soft_cap * kLog2E);
    }
    if (p.mask.masked_keys_count) {
      select_row<false>(scores, begin, end, scratch.visible_begin[r] - kv.start,
                        scratch.visible_end[r] - kv.start, p.mask_value * kLog2E);
    }
    if (!covers(keys[r], begin, end)) {
      select_row<true>(scores, begin, end, keys[r].begin, keys[r].end, 0);
    }
  }
  float* HWY_RESTRICT scores = scratch.scores + row * kTileKv;
  softmax_rows<Dot, kRows>(scores, begin, end, state.max + row, state.sum + row,
                           scratch.rescale + row);
  if (!quantised) return;
  for (int r = 0; r < kRows; ++r) scale_row(scores + r * kTileKv, begin, end, kv.value_scale);
}

// Rows to add values to together where `rows_left` take the same keys: all of them, and some of the block's
// `stand_ins` behind its last row, or as many as make a row of the table.
inline int64_t rows_to_add(int64_t rows_left, int64_t stand_ins) {
  const int64_t together = few_rows_together(rows_left);
  if (together <= rows_left + stand_ins) return together;
  int64_t whole = 1;
  for (const FewRowsBlocking& shape : kFewRowsBlocking) {
    if (shape.rows <= rows_left) whole = shape.rows;
  }
  return whole;
}

// Rows [row, row + num_rows), which take the same keys [begin, end).
template <class T, class Dot>
HWY_INLINE void add_few_rows(int64_t row, int64_t num_rows, int64_t stand_ins, const KvTile& kv,
                             int64_t begin, int64_t end, int64_t value_stride,
                             const Scratch& scratch, const State& state, FetchAhead& ahead) {
  const int64_t n = hn::Lanes(FloatTag());
  const auto add = [&]<size_t kIndex>(std::integral_constant<size_t, kIndex>) HWY_ATTR {
    constexpr FewRowsBlocking kShape = kFewRowsBlocking[kIndex];
    const float* weights = scratch.scores + row * kTileKv;
    float* acc = state.acc + row * value_stride;
    int64_t c = 0;
    for (; c + kShape.value_vectors * n <= value_stride; c += kShape.value_vectors * n) {
      Blocks<Dot>::template add_row_values<T, kShape.rows, kShape.value_vectors>(
          weights, kv.values, c, begin, end, scratch.rescale + row, acc, value_stride, ahead);
    }
    for (; c < value_stride; c += n) {
      Blocks<Dot>::template add_row_values<T, kShape.rows, 1>(
          weights, kv.values, c, begin, end, scratch.rescale + row, acc, value_stride, ahead);
    }
  };
  for (int64_t together; num_rows > 0; row += together, num_rows -= together) {
    together = rows_to_add(num_rows, stand_ins);
    with_few_rows(together, add);
  }
}

template <class T, class Dot>
void attend_few_rows(const Problem& p, const Block& block, KeyRange segment, KeyRange reach,
                     float factor, const Scratch& scratch, const State& state) {
  const int64_t lanes = hn::Lanes(FloatTag());
  const int64_t num_rows = block.num_rows();
  const int64_t value_stride = p.v_head_dim;
  reset(state, round_up(num_rows, lanes), few_rows_computed(num_rows) * value_stride);
  FetchAhead ahead(p, sizeof(T));
  for_each_kv_tile(
      p, block, segment, reach, kTileKv, [&](const KvTile& kv, const KvTile& next) HWY_ATTR {
        const int64_t begin = round_down(kv.begin, lanes), end = round_up(kv.end, lanes);
        const bool has_next = next.begin < next.end;
        ahead.plan(next, has_next ? fetches_of_few_rows<T, Dot>(p, num_rows, end - begin) : 1);
        if (kv.end - kv.begin <= kLoneKeys && kv.begin + kLoneKeys <= kTileKv) {
          score_lone_keys<T, Dot>(p, num_rows, kv, factor, scratch);
        } else {
          score_few_rows<T, Dot>(p, num_rows, kv, begin, end, factor, scratch, ahead);
        }
        KeyRange keys[kFewRows];  // within the tile, of each row
        for (int64_t r = 0; r < num_rows; ++r) keys[r] = keys_of_row(scratch, kv, r);
        for (int64_t r = 0; r < num_rows;) {
          const auto taken = [&](int64_t rows) {
            return r + rows <= num_rows &&
                   std::none_of(keys + r, keys + r + rows, [](KeyRange k) { return k.empty(); });
          };
          if (taken(4)) {
            weigh_rows<Dot, 4>(p, kv, r, keys, begin, end, scratch, state);
            r += 4;
          } else {
            if (taken(1)) weigh_rows<Dot, 1>(p, kv, r, keys, begin, end, scratch, state);
            ++r;
          }
        }
        for (int64_t r = 0, after; r < num_rows; r = after) {
          for (after = r + 1; after < num_rows && keys[after] == keys[r]; ++after) {
          }
          if (keys[r].empty()) continue;
          const int64_t stand_ins = after == num_rows ? few_rows_computed(num_rows) - num_rows : 0;
          add_few_rows<T, Dot>(r, after - r, stand_ins, kv, keys[r].begin, keys[r].end,
                               value_stride, scratch, state, ahead);
        }
      });
}
#endif

}  // namespace HWY_NAMESPACE
}  // namespace pagefill::cpu
HWY_AFTER_NAMESPACE();

#endif  // include guard
