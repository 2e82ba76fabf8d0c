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

HWY_BEFORE_NAMESPACE();
namespace pagefill::cpu {
namespace HWY_NAMESPACE {

// scores[k][row] = dot(queries[.][row], keys[k][.]) for four keys, summed from d = 0 upwards: the order
// of every row. The accumulators have names because SVE vectors cannot be in arrays.
template <int kVectors>
HWY_INLINE void score_four_keys(const float* HWY_RESTRICT queries, int64_t head_dim,
                                const float* const* key_rows, float* HWY_RESTRICT scores) {
  const FloatTag d;
  const size_t n = hn::Lanes(d);
  const float* HWY_RESTRICT k0 = key_rows[0];
  const float* HWY_RESTRICT k1 = key_rows[1];
  const float* HWY_RESTRICT k2 = key_rows[2];
  const float* HWY_RESTRICT k3 = key_rows[3];
  FloatVec s00 = hn::Zero(d), s01 = s00, s02 = s00, s10 = s00, s11 = s00, s12 = s00;
  FloatVec s20 = s00, s21 = s00, s22 = s00, s30 = s00, s31 = s00, s32 = s00;
#pragma GCC unroll 4
  for (int64_t i = 0; i < head_dim; ++i) {
    const FloatVec q0 = hn::Load(d, queries);
    const FloatVec q1 = kVectors > 1 ? hn::Load(d, queries + n) : q0;
    const FloatVec q2 = kVectors > 2 ? hn::Load(d, queries + 2 * n) : q0;
    queries += kVectors * n;
    FloatVec k = hn::Set(d, k0[i]);
    s00 = hn::MulAdd(q0, k, s00);
    if constexpr (kVectors > 1) s01 = hn::MulAdd(q1, k, s01);
    if constexpr (kVectors > 2) s02 = hn::MulAdd(q2, k, s02);
    k = hn::Set(d, k1[i]);
    s10 = hn::MulAdd(q0, k, s10);
    if constexpr (kVectors > 1) s11 = hn::MulAdd(q1, k, s11);
    if constexpr (kVectors > 2) s12 = hn::MulAdd(q2, k, s12);
    k = hn::Set(d, k2[i]);
    s20 = hn::MulAdd(q0, k, s20);
    if constexpr (kVectors > 1) s21 = hn::MulAdd(q1, k, s21);
    if constexpr (kVectors > 2) s22 = hn::MulAdd(q2, k, s22);
    k = hn::Set(d, k3[i]);
    s30 = hn::MulAdd(q0, k, s30);
    if constexpr (kVectors > 1) s31 = hn::MulAdd(q1, k, s31);
    if constexpr (kVectors > 2) s32 = hn::MulAdd(q2, k, s32);
  }
  const size_t row = kVectors * n;
  hn::Store(s00, d, scores);
  hn::Store(s10, d, scores + row);
  hn::Store(s20, d, scores + 2 * row);
  hn::Store(s30, d, scores + 3 * row);
  if constexpr (kVectors > 1) {
    hn::Store(s01, d, scores + n);
    hn::Store(s11, d, scores + row + n);
    hn::Store(s21, d, scores + 2 * row + n);
    hn::Store(s31, d, scores + 3 * row + n);
  }
  if constexpr (kVectors > 2) {
    hn::Store(s02, d, scores + 2 * n);
    hn::Store(s12, d, scores + row + 2 * n);
    hn::Store(s22, d, scores + 2 * row + 2 * n);
    hn::Store(s32, d, scores + 3 * row + 2 * n);
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
    // Two sums, of the even and the odd keys of the tile, halve the chain of additions.
    FloatVec even = hn::Zero(d), odd = hn::Zero(d);
    for (int64_t k = begin; k < end; k += 2) {
      float* HWY_RESTRICT at = column + k * tile_rows;
      const FloatVec w0 = exp2_nonpositive(d, hn::Sub(hn::Load(d, at), base));
      const FloatVec w1 = exp2_nonpositive(d, hn::Sub(hn::Load(d, at + tile_rows), base));
      hn::Store(w0, d, at);
      hn::Store(w1, d, at + tile_rows);
      even = hn::Add(even, w0);
      odd = hn::Add(odd, w1);
    }
    hn::Store(new_max, d, max + r);
    hn::Store(scale, d, rescale + r);
    hn::Store(hn::MulAdd(hn::Load(d, sum + r), scale, hn::Add(even, odd)), d, sum + r);
  }
}

// acc[row] = acc[row] * rescale[row] + sum over keys [begin, end) of weights[key][row] * values[key], for
// kRows rows and one block of columns, keys in ascending order.
template <int kRows>
HWY_INLINE void add_values(const float* HWY_RESTRICT weights, int64_t tile_rows,
                           const float* HWY_RESTRICT values, int64_t begin, int64_t end,
                           const float* HWY_RESTRICT rescale, float* HWY_RESTRICT acc,
                           int64_t value_stride) {
  const FloatTag d;
  const size_t n = hn::Lanes(d);
  const auto scaled = [&](int row, size_t column) HWY_ATTR {
    return hn::Mul(hn::Set(d, rescale[row]), hn::Load(d, acc + row * value_stride + column));
  };
  const FloatVec zero = hn::Zero(d);
  FloatVec a00 = scaled(0, 0), a01 = scaled(0, n), a10 = zero, a11 = zero, a20 = zero, a21 = zero;
  FloatVec a30 = zero, a31 = zero, a40 = zero, a41 = zero, a50 = zero, a51 = zero;
  if constexpr (kRows > 1) a10 = scaled(1, 0), a11 = scaled(1, n);
  if constexpr (kRows > 2) a20 = scaled(2, 0), a21 = scaled(2, n);
  if constexpr (kRows > 2) a30 = scaled(3, 0), a31 = scaled(3, n);
  if constexpr (kRows > 4) a40 = scaled(4, 0), a41 = scaled(4, n);
  if constexpr (kRows > 4) a50 = scaled(5, 0), a51 = scaled(5, n);
  values += begin * kValueVectors * n;
  weights += begin * tile_rows;
#pragma GCC unroll 4
  for (int64_t k = begin; k < end; ++k) {
    const FloatVec v0 = hn::Load(d, values), v1 = hn::Load(d, values + n);
    values += kValueVectors * n;
    FloatVec w = hn::Set(d, weights[0]);
    a00 = hn::MulAdd(w, v0, a00);
    a01 = hn::MulAdd(w, v1, a01);
    if constexpr (kRows > 1) {
      w = hn::Set(d, weights[1]);
      a10 = hn::MulAdd(w, v0, a10);
      a11 = hn::MulAdd(w, v1, a11);
    }
    if constexpr (kRows > 2) {
      w = hn::Set(d, weights[2]);
      a20 = hn::MulAdd(w, v0, a20);
      a21 = hn::MulAdd(w, v1, a21);
      w = hn::Set(d, weights[3]);
      a30 = hn::MulAdd(w, v0, a30);
      a31 = hn::MulAdd(w, v1, a31);
    }
    if constexpr (kRows > 4) {
      w = hn::Set(d, weights[4]);
      a40 = hn::MulAdd(w, v0, a40);
      a41 = hn::MulAdd(w, v1, a41);
      w = hn::Set(d, weights[5]);
      a50 = hn::MulAdd(w, v0, a50);
      a51 = hn::MulAdd(w, v1, a51);
    }
    weights += tile_rows;
  }
  const auto store = [&](int row, FloatVec first, FloatVec second) HWY_ATTR {
    hn::Store(first, d, acc + row * value_stride);
    hn::Store(second, d, acc + row * value_stride + n);
  };
  store(0, a00, a01);
  if constexpr (kRows > 1) store(1, a10, a11);
  if constexpr (kRows > 2) store(2, a20, a21), store(3, a30, a31);
  if constexpr (kRows > 4) store(4, a40, a41), store(5, a50, a51);
}

// The same for one row and keys that the row takes part in only, [begin, end), all columns: where the tile
// holds infinities or NaN that a masked key would turn into 0 * inf.
HWY_INLINE void add_values_of_row(const float* HWY_RESTRICT weights, int64_t tile_rows,
                                  const float* HWY_RESTRICT values, int64_t begin, int64_t end,
                                  float rescale, float* HWY_RESTRICT acc, int64_t value_stride) {
  const FloatTag d;
  const int64_t n = hn::Lanes(d);
  const int64_t block = kValueVectors * n;
  const FloatVec scale = hn::Set(d, rescale);
  for (int64_t c = 0; c < value_stride; c += n) {
    const float* HWY_RESTRICT column = values + c / block * block * kTileKv + c % block;
    FloatVec a = hn::Mul(scale, hn::Load(d, acc + c));
    for (int64_t k = begin; k < end; ++k) {
      a = hn::MulAdd(hn::Set(d, weights[k * tile_rows]), hn::Load(d, column + k * block), a);
    }
    hn::Store(a, d, acc + c);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pagefill::cpu
HWY_AFTER_NAMESPACE();

#endif  // include guard
