// The loops that multiply, for one kind of product: blocks-inl.h includes this for each, with PAGEFILL_DOT, and
// PAGEFILL_DOT_ATTR for lambdas, because each is compiled for other instructions.
template <>
struct Blocks<PAGEFILL_DOT> {
  using Dot = PAGEFILL_DOT;

  // scores[k][row] = dot(queries[.][row], keys[k][.]) * factor for a step of keys, summed from d = 0 upwards:
  // the order of every row. The accumulators have names because SVE vectors cannot be in arrays.
  template <int kVectors>
  static void score_keys(const float* HWY_RESTRICT queries, int64_t head_dim,
                         const void* const* key_rows, float factor, float* HWY_RESTRICT scores) {
    const FloatTag d;
    const size_t n = hn::Lanes(d);
    constexpr int kKeys = kBlocking.keys;
    const auto row_of = [&](int k) { return k < kKeys ? key_rows[k] : key_rows[0]; };
    const void* k0 = row_of(0);
    const void* k1 = row_of(1);
    const void* k2 = row_of(2);
    const void* k3 = row_of(3);
    const void* k4 = row_of(4);
    const void* k5 = row_of(5);
    const void* k6 = row_of(6);
    const void* k7 = row_of(7);
    FloatVec s00 = hn::Zero(d), s01 = s00, s02 = s00, s10 = s00, s11 = s00, s12 = s00;
    FloatVec s20 = s00, s21 = s00, s22 = s00, s30 = s00, s31 = s00, s32 = s00;
    FloatVec s40 = s00, s41 = s00, s42 = s00, s50 = s00, s51 = s00, s52 = s00;
    FloatVec s60 = s00, s61 = s00, s62 = s00, s70 = s00, s71 = s00, s72 = s00;
    PAGEFILL_UNROLL_TWICE
    for (int64_t i = 0; i < head_dim / Dot::kElements; ++i) {
      const FloatVec q0 = hn::Load(d, queries);
      const FloatVec q1 = kVectors > 1 ? hn::Load(d, queries + n) : q0;
      const FloatVec q2 = kVectors > 2 ? hn::Load(d, queries + 2 * n) : q0;
      queries += kVectors * n;
      const auto add = [&](const void* key, FloatVec& a, FloatVec& b,
                           FloatVec& c) PAGEFILL_DOT_ATTR {
        const FloatVec k = broadcast_unit(static_cast<const char*>(key) + i * kUnitBytes);
        a = add_product(Dot(), q0, k, a);
        if constexpr (kVectors > 1) b = add_product(Dot(), q1, k, b);
        if constexpr (kVectors > 2) c = add_product(Dot(), q2, k, c);
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
    const auto store = [&](FloatVec a, FloatVec b, FloatVec c) PAGEFILL_DOT_ATTR {
      if constexpr (Dot::kElements > 1) {  // else the queries carry the factor
        const FloatVec by = hn::Set(d, factor);
        a = hn::Mul(a, by), b = hn::Mul(b, by), c = hn::Mul(c, by);
      }
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

  // acc[row] = acc[row] * rescale[row] + sum over units of keys [begin, end) of weights[unit][row] *
  // values[unit], for kRows rows and a block of kVectors vectors of columns, in ascending order.
  template <int kRows, int kVectors>
  static void add_values(const float* HWY_RESTRICT weights, int64_t tile_rows,
                         const float* HWY_RESTRICT values, int64_t begin, int64_t end,
                         const float* HWY_RESTRICT rescale, float* HWY_RESTRICT acc,
                         int64_t value_stride) {
    const FloatTag d;
    const size_t n = hn::Lanes(d);
    const auto scaled = [&](int row, int vector) PAGEFILL_DOT_ATTR {
      if (row >= kRows || vector >= kVectors) return hn::Zero(d);
      return hn::Mul(hn::Set(d, rescale[row]), hn::Load(d, acc + row * value_stride + vector * n));
    };
    FloatVec a00 = scaled(0, 0), a01 = scaled(0, 1), a02 = scaled(0, 2), a03 = scaled(0, 3);
    FloatVec a10 = scaled(1, 0), a11 = scaled(1, 1), a12 = scaled(1, 2), a13 = scaled(1, 3);
    FloatVec a20 = scaled(2, 0), a21 = scaled(2, 1), a22 = scaled(2, 2), a23 = scaled(2, 3);
    FloatVec a30 = scaled(3, 0), a31 = scaled(3, 1), a32 = scaled(3, 2), a33 = scaled(3, 3);
    FloatVec a40 = scaled(4, 0), a41 = scaled(4, 1), a42 = scaled(4, 2), a43 = scaled(4, 3);
    FloatVec a50 = scaled(5, 0), a51 = scaled(5, 1), a52 = scaled(5, 2), a53 = scaled(5, 3);
    begin /= Dot::kElements, end /= Dot::kElements;  // whole units
    values += begin * kVectors * n;
    weights += begin * tile_rows;
    PAGEFILL_UNROLL_TWICE
    for (int64_t k = begin; k < end; ++k) {
      const FloatVec v0 = hn::Load(d, values);
      const FloatVec v1 = kVectors > 1 ? hn::Load(d, values + n) : v0;
      const FloatVec v2 = kVectors > 2 ? hn::Load(d, values + 2 * n) : v0;
      const FloatVec v3 = kVectors > 3 ? hn::Load(d, values + 3 * n) : v0;
      values += kVectors * n;
      const auto add = [&](int row, FloatVec& a, FloatVec& b, FloatVec& c, FloatVec& e)
                           PAGEFILL_DOT_ATTR {
                             const FloatVec w = broadcast_unit(weights + row);
                             a = add_product(Dot(), v0, w, a);
                             if constexpr (kVectors > 1) b = add_product(Dot(), v1, w, b);
                             if constexpr (kVectors > 2) c = add_product(Dot(), v2, w, c);
                             if constexpr (kVectors > 3) e = add_product(Dot(), v3, w, e);
                           };
      add(0, a00, a01, a02, a03);
      if constexpr (kRows > 1) add(1, a10, a11, a12, a13);
      if constexpr (kRows > 2) add(2, a20, a21, a22, a23);
      if constexpr (kRows > 3) add(3, a30, a31, a32, a33);
      if constexpr (kRows > 4) add(4, a40, a41, a42, a43);
      if constexpr (kRows > 5) add(5, a50, a51, a52, a53);
      weights += tile_rows;
    }
    const auto store = [&](FloatVec a, FloatVec b, FloatVec c, FloatVec e) PAGEFILL_DOT_ATTR {
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
  static void add_values_of_row(const float* HWY_RESTRICT weights, int64_t tile_rows,
                                const float* HWY_RESTRICT values, int64_t begin, int64_t end,
                                float rescale, float* HWY_RESTRICT acc, int64_t value_stride) {
    const FloatTag d;
    const hn::RebindToUnsigned<FloatTag> du;
    const int64_t n = hn::Lanes(d);
    const FloatVec scale = hn::Set(d, rescale);
    for (int64_t first = 0, width; first < value_stride; first += width) {
      width = value_width(value_stride - first, n);
      for (int64_t c = 0; c < width; c += n) {
        const float* HWY_RESTRICT column = values + first * (kTileKv / Dot::kElements) + c;
        FloatVec a = hn::Mul(scale, hn::Load(d, acc + first + c));
        for (int64_t u = begin / Dot::kElements; u * Dot::kElements < end; ++u) {
          FloatVec v = hn::Load(d, column + u * width);
          if constexpr (Dot::kElements == 2) {  // half a pair at either end
            uint32_t both = 0xffffffffu;
            if (2 * u < begin) both &= 0xffff0000u;
            if (2 * u + 1 >= end) both &= 0x0000ffffu;
            v = hn::BitCast(d, hn::And(hn::BitCast(du, v), hn::Set(du, both)));
          }
          a = add_product(Dot(), v, broadcast_unit(weights + u * tile_rows), a);
        }
        hn::Store(a, d, acc + first + c);
      }
    }
  }

#if PAGEFILL_CPU_KEYS_IN_LANES
  // scores[row][key] = dot(queries[.][row], keys[key][.]) * factor for kRows rows and kVectors vectors of
  // keys, from d = 0 upwards. The queries are [head_dim][kRows].
  template <class T, int kRows, int kVectors>
  static void score_row_keys(const float* HWY_RESTRICT queries, int64_t head_dim, float factor,
                             const void* const* keys, FetchAhead& ahead,
                             float* HWY_RESTRICT scores) {
    const FloatTag d;
    const int64_t n = hn::Lanes(d);
    FloatVec sums[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::Zero(d);
    }
    const int64_t bytes = head_dim * static_cast<int64_t>(sizeof(T));
    for (int64_t at = 0; at < bytes; at += kPieceBytes) {
      UnitVec units[kVectors][4];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) transpose_piece(keys + v * n, at, units[v]);
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        if (u % units_a_fetch(kVectors) == 0) ahead.fetch_some();
#pragma GCC unroll 4
        for (int e = 0; e < kOperandsOfUnit<T, Dot>; ++e) {
          FloatVec k[kVectors];
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) k[v] = operand<T, Dot>(units[v][u], e);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            const FloatVec q = broadcast_unit(queries + r);
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sums[r][v] = add_product(Dot(), k[v], q, sums[r][v]);
          }
          queries += kRows;
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        if constexpr (Dot::kElements > 1) sums[r][v] = hn::Mul(sums[r][v], hn::Set(d, factor));
        hn::Store(sums[r][v], d, scores + r * kTileKv + v * n);
      }
    }
  }

  // The same for kKeys keys of operands as they are, with rows in lanes: where a tile has no more keys, most lanes
  // would have none. The queries are [head_dim][stride], at most kVectors vectors of rows; lanes behind them read
  // on and are left out.
  template <int kKeys, int kVectors>
  static void score_lone_keys(const float* HWY_RESTRICT queries, int64_t stride, int64_t head_dim,
                              float factor, const void* const* keys, float* HWY_RESTRICT scores) {
    const FloatTag d;
    const int64_t n = hn::Lanes(d);
    FloatVec sums[kKeys][kVectors];
#pragma GCC unroll 4
    for (int k = 0; k < kKeys; ++k) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[k][v] = hn::Zero(d);
    }
    PAGEFILL_UNROLL_TWICE
    for (int64_t i = 0; i < head_dim / Dot::kElements; ++i, queries += stride) {
#pragma GCC unroll 4
      for (int k = 0; k < kKeys; ++k) {
        const FloatVec unit = broadcast_unit(static_cast<const char*>(keys[k]) + i * kUnitBytes);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          sums[k][v] = add_product(Dot(), unit, hn::LoadU(d, queries + v * n), sums[k][v]);
        }
      }
    }
#pragma GCC unroll 4
    for (int k = 0; k < kKeys; ++k) {
      HWY_ALIGN float by_row[kVectors * hn::MaxLanes(FloatTag())];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        if constexpr (Dot::kElements > 1) sums[k][v] = hn::Mul(sums[k][v], hn::Set(d, factor));
        hn::Store(sums[k][v], d, by_row + v * n);
      }
      for (int64_t r = 0; r < stride; ++r) scores[r * kTileKv + k] = by_row[r];
    }
  }

  // acc[row] = acc[row] * rescale[row] + sum over keys [begin, end) of weights[row][key] * values[key], for
  // kRows rows and kVectors vectors of columns from `column` on, keys in ascending order.
  template <class T, int kRows, int kVectors>
  static void add_row_values(const float* HWY_RESTRICT weights, const void* const* values,
                             int64_t column, int64_t begin, int64_t end,
                             const float* HWY_RESTRICT rescale, float* HWY_RESTRICT acc,
                             int64_t value_stride, FetchAhead& ahead) {
    const FloatTag d;
    const int64_t n = hn::Lanes(d);
    acc += column;
    FloatVec sums[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const FloatVec scale = hn::Set(d, rescale[r]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = hn::Mul(scale, hn::Load(d, acc + r * value_stride + v * n));
      }
    }
    for (int64_t k = round_down(begin, Dot::kElements); k < end; k += Dot::kElements) {
      FloatVec value[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        value[v] = load_values<T, Dot>(values, k, begin, end, column + v * n);
      }
      if (k % (keys_a_fetch<T>(kVectors) * Dot::kElements) == 0) ahead.fetch_some();
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const FloatVec w = broadcast_unit(weights + r * kTileKv + k / Dot::kElements);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[r][v] = add_product(Dot(), value[v], w, sums[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) hn::Store(sums[r][v], d, acc + r * value_stride + v * n);
    }
  }
#endif
};
