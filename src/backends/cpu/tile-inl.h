// One KV tile and one row tile, between the two products of blocks-inl.h: scales, cap, mask, softmax. Lanes
// are rows, so that rows never mix and a row's bits do not depend on which lane, or how wide a tile, it has.
// Compiled once for each target.
#if defined(PAGEFILL_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEFILL_CPU_TILE_INL_H_
#undef PAGEFILL_CPU_TILE_INL_H_
#else
#define PAGEFILL_CPU_TILE_INL_H_
#endif

#include <hwy/highway.h>

#include "backends/cpu/config.h"
#include "backends/cpu/math-inl.h"
#include "geometry.h"

HWY_BEFORE_NAMESPACE();
namespace pagefill::cpu {
namespace HWY_NAMESPACE {

inline constexpr Blocking kBlocking =
    HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM_A64 ? kRegisters32 : kRegisters16;

inline constexpr int64_t kUnitBytes = 4;

// A unit that may be aligned to less.
HWY_INLINE FloatVec broadcast_unit(const void* unit) {
  float value;
  __builtin_memcpy(&value, unit, sizeof value);
  return hn::Set(FloatTag(), value);
}

// Columns of the block of values that begins where `columns_left` columns (whole vectors) are left: blocks
// are as wide as the registers allow, and nearly equal.
constexpr int64_t value_width(int64_t columns_left, int64_t lanes) {
  const int64_t vectors = columns_left / lanes;
  return lanes * ceil_div(vectors, ceil_div(vectors, int64_t{kBlocking.value_vectors}));
}

inline bool covers(KeyRange outer, int64_t begin, int64_t end) {
  return outer.begin <= begin && end <= outer.end;
}

// scores = cap * log2(e) * tanh(scores / (2 * log2(e))): the queries carry softmax_scale * 2 * log2(e) / cap.
HWY_INLINE void soft_cap_scores(float* HWY_RESTRICT scores, int64_t count, float cap_log2) {
  const FloatTag d;
  const FloatVec cap = hn::Set(d, cap_log2);
  const int64_t n = hn::Lanes(d);
  for (int64_t i = 0; i < count; i += n) {
    hn::Store(hn::Mul(cap, tanh_log2(d, hn::Load(d, scores + i))), d, scores + i);
  }
}

// Each key's scores, or its weights, times the scale of the key, or of the value.
HWY_INLINE void scale_by_key(float* HWY_RESTRICT scores, int64_t tile_rows, int64_t begin,
                             int64_t end, const float* scale) {
  const FloatTag d;
  const int64_t n = hn::Lanes(d);
  for (int64_t k = begin; k < end; ++k) {
    const FloatVec s = hn::Set(d, scale[k]);
    for (int64_t r = 0; r < tile_rows; r += n) {
      float* at = scores + k * tile_rows + r;
      hn::Store(hn::Mul(hn::Load(d, at), s), d, at);
    }
  }
}

// For keys [begin, end) of the tile at tile_start: a score outside of its row's range becomes
// `outside(score)`, by select, so that a NaN there does no harm.
template <bool kExclude>
HWY_INLINE void select_scores(float* HWY_RESTRICT scores, int64_t tile_rows, int64_t tile_start,
                              int64_t begin, int64_t end, const int32_t* range_begin,
                              const int32_t* range_end, float penalty) {
  const FloatTag d;
  const IntTag di;
  const int64_t n = hn::Lanes(d);
  const FloatVec minus_infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int64_t r = 0; r < tile_rows; r += n) {
    const auto first = hn::Load(di, range_begin + r);
    const auto last = hn::Load(di, range_end + r);
    for (int64_t k = begin; k < end; ++k) {
      const auto key = hn::Set(di, static_cast<int32_t>(tile_start + k));
      const auto inside = hn::AndNot(hn::Lt(key, first), hn::Lt(key, last));
      const FloatVec s = hn::Load(d, scores + k * tile_rows + r);
      const FloatVec other = kExclude ? minus_infinity : hn::Add(s, hn::Set(d, penalty));
      hn::Store(hn::IfThenElse(hn::RebindMask(d, inside), s, other), d, scores + k * tile_rows + r);
    }
  }
}

// Scores become weights 2^(score - max); max, sum and rescale follow. A row that has seen no key yet
// keeps max = -inf, and -inf scores weigh 0. Pairs of keys share a unit: scores[k / 2][row].
template <class Dot>
HWY_INLINE void softmax(float* HWY_RESTRICT scores, int64_t tile_rows, int64_t begin, int64_t end,
                        float* HWY_RESTRICT max, float* HWY_RESTRICT sum,
                        float* HWY_RESTRICT rescale) {
  const FloatTag d;
  const int64_t n = hn::Lanes(d);
  const FloatVec minus_infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
  const auto weigh = [&](const float* at, FloatVec base, FloatVec& total) HWY_ATTR {
    const FloatVec w = exp2_nonpositive(d, hn::Sub(hn::Load(d, at), base));
    total = hn::Add(total, w);
    return w;
  };
  for (int64_t r = 0; r < tile_rows; r += n) {
    float* column = scores + r;
    const FloatVec old_max = hn::Load(d, max + r);
    FloatVec m0 = old_max, m1 = old_max;
    for (int64_t k = begin; k < end; k += 2) {
      m0 = hn::Max(m0, hn::Load(d, column + k * tile_rows));
      m1 = hn::Max(m1, hn::Load(d, column + (k + 1) * tile_rows));
    }
    const FloatVec new_max = hn::Max(m0, m1);
    const FloatVec base = hn::IfThenZeroElse(hn::Eq(new_max, minus_infinity), new_max);
    const FloatVec scale = exp2_nonpositive(d, hn::Sub(old_max, base));
    // Four sums, of every fourth key of the tile: a fourth of the chain of additions, and what a row whose
    // keys are in lanes can do as well.
    FloatVec s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
    for (int64_t k = begin; k < end; k += 4) {
      const float* at = column + k * tile_rows;
      const FloatVec w0 = weigh(at, base, s0), w1 = weigh(at + tile_rows, base, s1);
      const FloatVec w2 = weigh(at + 2 * tile_rows, base, s2);
      const FloatVec w3 = weigh(at + 3 * tile_rows, base, s3);
      float* to = column + k / Dot::kElements * tile_rows;
      if constexpr (Dot::kElements == 1) {
        hn::Store(w0, d, to);
        hn::Store(w1, d, to + tile_rows);
        hn::Store(w2, d, to + 2 * tile_rows);
        hn::Store(w3, d, to + 3 * tile_rows);
      } else {
        hn::Store(Dot::pack(w0, w1), d, to);
        hn::Store(Dot::pack(w2, w3), d, to + tile_rows);
      }
    }
    const FloatVec added = hn::Add(hn::Add(s0, s2), hn::Add(s1, s3));
    hn::Store(new_max, d, max + r);
    hn::Store(scale, d, rescale + r);
    hn::Store(hn::MulAdd(hn::Load(d, sum + r), scale, added), d, sum + r);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pagefill::cpu
HWY_AFTER_NAMESPACE();

#endif  // include guard
