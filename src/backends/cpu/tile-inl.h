// The arithmetic of one KV tile and one row tile: scores, softmax, weighted values. Lanes are rows, so
// that rows never mix and a row's bits do not depend on which lane, or how wide a tile, it has. Compiled
// once for each target.
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

// Columns of the block of values that begins where `columns_left` columns (whole vectors) are left: blocks
// are as wide as the registers allow, and nearly equal.
constexpr int64_t value_width(int64_t columns_left, int64_t lanes) {
  const int64_t vectors = columns_left / lanes;
  return lanes * ceil_div(vectors, ceil_div(vectors, int64_t{kBlocking.value_vectors}));
}

inline bool covers(KeyRange outer, int64_t begin, int64_t end) {
  return outer.begin <= begin && end <= outer.end;
}

// scores[k][row] = dot(queries[.][row], keys[k][.]) for a step of keys, summed from d = 0 upwards: the
// order of every row. The accumulators have names because SVE vectors cannot be in arrays.
template <int kVectors>
HWY_INLINE void score_keys(const float* HWY_RESTRICT queries, int64_t head_dim,
                           const float* const* key_rows, float* HWY_RESTRICT scores) {
  const FloatTag d;
  const size_t n = hn::Lanes(d);
  constexpr int kKeys = kBlocking.keys;
  const auto row_of = [&](int k) { return k < kKeys ? key_rows[k] : key_rows[0]; };
  const float* k0 = row_of(0);
  const float* k1 = row_of(1);
  const float* k2 = row_of(2);
  const float* k3 = row_of(3);
  const float* k4 = row_of(4);
  const float* k5 = row_of(5);
  const float* k6 = row_of(6);
  const float* k7 = row_of(7);
  FloatVec s00 = hn::Zero(d), s01 = s00, s02 = s00, s10 = s00, s11 = s00, s12 = s00;
  FloatVec s20 = s00, s21 = s00, s22 = s00, s30 = s00, s31 = s00, s32 = s00;
  FloatVec s40 = s00, s41 = s00, s42 = s00, s50 = s00, s51 = s00, s52 = s00;
  FloatVec s60 = s00, s61 = s00, s62 = s00, s70 = s00, s71 = s00, s72 = s00;
#pragma GCC unroll 2
  for (int64_t i = 0; i < head_dim; ++i) {
    const FloatVec q0 = hn::Load(d, queries);
    const FloatVec q1 = kVectors > 1 ? hn::Load(d, queries + n) : q0;
    const FloatVec q2 = kVectors > 2 ? hn::Load(d, queries + 2 * n) : q0;
    queries += kVectors * n;
    const auto add = [&](const float* key, FloatVec& a, FloatVec& b, FloatVec& c) HWY_ATTR {
      const FloatVec k = hn::Set(d, key[i]);
      a = hn::MulAdd(q0, k, a);
      if constexpr (kVectors > 1) b = hn::MulAdd(q1, k, b);
      if constexpr (kVectors > 2) c = hn::MulAdd(q2, k, c);
    };
    add(k0, s00, s01, s02);
    add(k1, s10, s11, s12);
    add(k2, s20, s21, s22);
    add(k3, s30, s31, s32);
    if constexpr (kKeys > 4) {
      add(k4, s40, s41, s42);
      add(k5, s50, s51, s52);
      add(k6, s60, s61, s62);
      add(k7, s70, s71, s72);
    }
  }
  const auto store = [&](FloatVec a, FloatVec b, FloatVec c) HWY_ATTR {
    hn::Store(a, d, scores);
    if constexpr (kVectors > 1) hn::Store(b, d, scores + n);
    if constexpr (kVectors > 2) hn::Store(c, d, scores + 2 * n);
    scores += kVectors * n;
  };
  store(s00, s01, s02);
  store(s10, s11, s12);
  store(s20, s21, s22);
  store(s30, s31, s32);
  if constexpr (kKeys > 4) {
    store(s40, s41, s42);
    store(s50, s51, s52);
    store(s60, s61, s62);
    store(s70, s71, s72);
  }
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
// keeps max = -inf, and -inf scores weigh 0.
HWY_INLINE void softmax(float* HWY_RESTRICT scores, int64_t tile_rows, int64_t begin, int64_t end,
                        float* HWY_RESTRICT max, float* HWY_RESTRICT sum,
                        float* HWY_RESTRICT rescale) {
  const FloatTag d;
  const int64_t n = hn::Lanes(d);
  const FloatVec minus_infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
  const auto weigh = [&](float* HWY_RESTRICT at, FloatVec base, FloatVec& total) HWY_ATTR {
    const FloatVec w = exp2_nonpositive(d, hn::Sub(hn::Load(d, at), base));
    hn::Store(w, d, at);
    total = hn::Add(total, w);
  };
  for (int64_t r = 0; r < tile_rows; r += n) {
    float* HWY_RESTRICT column = scores + r;
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
      float* HWY_RESTRICT at = column + k * tile_rows;
      weigh(at, base, s0);
      weigh(at + tile_rows, base, s1);
      weigh(at + 2 * tile_rows, base, s2);
      weigh(at + 3 * tile_rows, base, s3);
    }
    const FloatVec added = hn::Add(hn::Add(s0, s2), hn::Add(s1, s3));
    hn::Store(new_max, d, max + r);
    hn::Store(scale, d, rescale + r);
    hn::Store(hn::MulAdd(hn::Load(d, sum + r), scale, added), d, sum + r);
  }
}

// acc[row] = acc[row] * rescale[row] + sum over keys [begin, end) of weights[key][row] * values[key], for
// kRows rows and a block of kVectors vectors of columns, keys in ascending order.
template <int kRows, int kVectors>
HWY_INLINE void add_values(const float* HWY_RESTRICT weights, int64_t tile_rows,
                           const float* HWY_RESTRICT values, int64_t begin, int64_t end,
                           const float* HWY_RESTRICT rescale, float* HWY_RESTRICT acc,
                           int64_t value_stride) {
  const FloatTag d;
  const size_t n = hn::Lanes(d);
  const auto scaled = [&](int row, int vector) HWY_ATTR {
    if (row >= kRows || vector >= kVectors) return hn::Zero(d);
    return hn::Mul(hn::Set(d, rescale[row]), hn::Load(d, acc + row * value_stride + vector * n));
  };
  FloatVec a00 = scaled(0, 0), a01 = scaled(0, 1), a02 = scaled(0, 2), a03 = scaled(0, 3);
  FloatVec a10 = scaled(1, 0), a11 = scaled(1, 1), a12 = scaled(1, 2), a13 = scaled(1, 3);
  FloatVec a20 = scaled(2, 0), a21 = scaled(2, 1), a22 = scaled(2, 2), a23 = scaled(2, 3);
  FloatVec a30 = scaled(3, 0), a31 = scaled(3, 1), a32 = scaled(3, 2), a33 = scaled(3, 3);
  FloatVec a40 = scaled(4, 0), a41 = scaled(4, 1), a42 = scaled(4, 2), a43 = scaled(4, 3);
  FloatVec a50 = scaled(5, 0), a51 = scaled(5, 1), a52 = scaled(5, 2), a53 = scaled(5, 3);
  values += begin * kVectors * n;
  weights += begin * tile_rows;
#pragma GCC unroll 2
  for (int64_t k = begin; k < end; ++k) {
    const FloatVec v0 = hn::Load(d, values);
    const FloatVec v1 = kVectors > 1 ? hn::Load(d, values + n) : v0;
    const FloatVec v2 = kVectors > 2 ? hn::Load(d, values + 2 * n) : v0;
    const FloatVec v3 = kVectors > 3 ? hn::Load(d, values + 3 * n) : v0;
    values += kVectors * n;
    const auto add = [&](int row, FloatVec& a, FloatVec& b, FloatVec& c, FloatVec& e) HWY_ATTR {
      const FloatVec w = hn::Set(d, weights[row]);
      a = hn::MulAdd(w, v0, a);
      if constexpr (kVectors > 1) b = hn::MulAdd(w, v1, b);
      if constexpr (kVectors > 2) c = hn::MulAdd(w, v2, c);
      if constexpr (kVectors > 3) e = hn::MulAdd(w, v3, e);
    };
    add(0, a00, a01, a02, a03);
    if constexpr (kRows > 1) add(1, a10, a11, a12, a13);
    if constexpr (kRows > 2) add(2, a20, a21, a22, a23);
    if constexpr (kRows > 3) add(3, a30, a31, a32, a33);
    if constexpr (kRows > 4) add(4, a40, a41, a42, a43);
    if constexpr (kRows > 5) add(5, a50, a51, a52, a53);
    weights += tile_rows;
  }
  const auto store = [&](FloatVec a, FloatVec b, FloatVec c, FloatVec e) HWY_ATTR {
    hn::Store(a, d, acc);
    if constexpr (kVectors > 1) hn::Store(b, d, acc + n);
    if constexpr (kVectors > 2) hn::Store(c, d, acc + 2 * n);
    if constexpr (kVectors > 3) hn::Store(e, d, acc + 3 * n);
    acc += value_stride;
  };
  store(a00, a01, a02, a03);
  if constexpr (kRows > 1) store(a10, a11, a12, a13);
  if constexpr (kRows > 2) store(a20, a21, a22, a23);
  if constexpr (kRows > 3) store(a30, a31, a32, a33);
  if constexpr (kRows > 4) store(a40, a41, a42, a43);
  if constexpr (kRows > 5) store(a50, a51, a52, a53);
}

// The same for one row and keys that the row takes part in only, [begin, end), all columns: where the tile
// holds infinities or NaN that a masked key would turn into 0 * inf.
HWY_INLINE void add_values_of_row(const float* HWY_RESTRICT weights, int64_t tile_rows,
                                  const float* HWY_RESTRICT values, int64_t begin, int64_t end,
                                  float rescale, float* HWY_RESTRICT acc, int64_t value_stride) {
  const FloatTag d;
  const int64_t n = hn::Lanes(d);
  const FloatVec scale = hn::Set(d, rescale);
  for (int64_t first = 0, width; first < value_stride; first += width) {
    width = value_width(value_stride - first, n);
    for (int64_t c = 0; c < width; c += n) {
      const float* HWY_RESTRICT column = values + first * kTileKv + c;
      FloatVec a = hn::Mul(scale, hn::Load(d, acc + first + c));
      for (int64_t k = begin; k < end; ++k) {
        a = hn::MulAdd(hn::Set(d, weights[k * tile_rows]), hn::Load(d, column + k * width), a);
      }
      hn::Store(a, d, acc + first + c);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pagefill::cpu
HWY_AFTER_NAMESPACE();

#endif  // include guard
