// AMX: tiles of 16 x 16 float32 sums of products of bfloat16 pairs. Rows of queries are rows of a tile, keys
// and columns of values its columns; the weights of a row lie as the softmax of keys in lanes leaves them.
// Few rows take the same way, so that decode has the bits of prefill. The instructions are assembler: the
// functions around them are compiled for AVX-512.
#if defined(PAGEFILL_CPU_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEFILL_CPU_AMX_INL_H_
#undef PAGEFILL_CPU_AMX_INL_H_
#else
#define PAGEFILL_CPU_AMX_INL_H_
#endif

#include <hwy/highway.h>

#include "backends/cpu/config.h"
#include "backends/cpu/few_rows-inl.h"
#include "backends/cpu/kernel.h"
#include "backends/cpu/stage-inl.h"
#include "backends/cpu/units-inl.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace pagefill::cpu {
namespace HWY_NAMESPACE {

// Rows, keys or columns of a tile, and bytes of its rows: 16 float32, or 16 pairs of bfloat16.
inline constexpr int64_t kAmxSide = 16;
inline constexpr int64_t kAmxRowBytes = 64;
// A block is 2 x 2 tiles of sums, with two of each operand: all eight registers.
inline constexpr int64_t kAmxBlock = 2 * kAmxSide;
static_assert(kAmxBlock <= kMaxKeyStep);

// All tiles have 16 rows of 64 bytes. The thread has them from here to the end of the scope.
class AmxTiles {
 public:
  AmxTiles() {
    struct alignas(64) Config {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = kAmxRowBytes;
      config.rows[i] = kAmxSide;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  ~AmxTiles() { __asm__ volatile("tilerelease"); }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
};

template <int kTile>
HWY_INLINE void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kTile>
HWY_INLINE void load_tile(const void* from, int64_t stride_bytes) {
  __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0"
                   :
                   : "i"(kTile), "r"(from), "r"(stride_bytes)
                   : "memory");
}
template <int kTile>
HWY_INLINE void store_tile(void* to, int64_t stride_bytes) {
  __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)"
                   :
                   : "i"(kTile), "r"(to), "r"(stride_bytes)
                   : "memory");
}
// sums += a * b, over 16 pairs.
template <int kSums, int kA, int kB>
HWY_INLINE void multiply_tiles() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
}

// A matrix of tiles: element (row, column) is at data + row * stride_bytes + column * 4.
struct AmxMatrix {
  char* data;
  int64_t stride_bytes;

  char* at(int64_t row, int64_t column) const { return data + row * stride_bytes + column * 4; }
};

// sums (kRows x 2 tiles) = or += a * b over `pairs` pairs; b has a row for each pair.
template <int kRows, bool kFromZero>
HWY_INLINE void multiply_block(AmxMatrix sums, AmxMatrix a, AmxMatrix b, int64_t pairs) {
  const auto begin = [&]<int kTile>(std::integral_constant<int, kTile>) HWY_ATTR {
    if constexpr (kFromZero) {
      zero_tile<kTile>();
    } else {
      load_tile<kTile>(sums.at(kTile / 2 * kAmxSide, kTile % 2 * kAmxSide), sums.stride_bytes);
    }
  };
  begin(std::integral_constant<int, 0>());
  begin(std::integral_constant<int, 1>());
  if constexpr (kRows > 1) {
    begin(std::integral_constant<int, 2>());
    begin(std::integral_constant<int, 3>());
  }
  for (int64_t pair = 0; pair < pairs; pair += kAmxSide) {
    load_tile<6>(b.at(pair, 0), b.stride_bytes);
    load_tile<7>(b.at(pair, kAmxSide), b.stride_bytes);
    load_tile<4>(a.at(0, pair), a.stride_bytes);
    multiply_tiles<0, 4, 6>();
    multiply_tiles<1, 4, 7>();
    if constexpr (kRows > 1) {
      load_tile<5>(a.at(kAmxSide, pair), a.stride_bytes);
      multiply_tiles<2, 5, 6>();
      multiply_tiles<3, 5, 7>();
    }
  }
  store_tile<0>(sums.at(0, 0), sums.stride_bytes);
  store_tile<1>(sums.at(0, kAmxSide), sums.stride_bytes);
  if constexpr (kRows > 1) {
    store_tile<2>(sums.at(kAmxSide, 0), sums.stride_bytes);
    store_tile<3>(sums.at(kAmxSide, kAmxSide), sums.stride_bytes);
  }
}

// The same for one column of tiles: what is left of an odd number of them.
HWY_INLINE void multiply_last_column(int64_t tile_rows, AmxMatrix sums, AmxMatrix a, AmxMatrix b,
                                     int64_t pairs) {
  for (int64_t row = 0; row < tile_rows; row += kAmxSide) {
    load_tile<0>(sums.at(row, 0), sums.stride_bytes);
    for (int64_t pair = 0; pair < pairs; pair += kAmxSide) {
      load_tile<6>(b.at(pair, 0), b.stride_bytes);
      load_tile<4>(a.at(row, pair), a.stride_bytes);
      multiply_tiles<0, 4, 6>();
    }
    store_tile<0>(sums.at(row, 0), sums.stride_bytes);
  }
}

// Where products of pairs are possible; anything else goes as AVX-512 without them.
inline bool has_pairs(const Problem& p) {
  return p.query.dtype == DType::kBFloat16 && p.key_cache.dtype == DType::kBFloat16;
}

// Where AMX computes, and the shapes that fill its tiles; other shapes go as if it were not there.
inline bool suits_amx(const Problem& p) {
  return has_pairs(p) && p.head_dim % (2 * kAmxSide) == 0 && p.v_head_dim % kAmxSide == 0;
}

// The keys [begin, end) of a tile, whole blocks, as units [head_dim / 2][kAmxTileKv].
HWY_INLINE void transpose_keys(const Problem& p, const KvTile& kv, int64_t begin, int64_t end,
                               uint32_t* HWY_RESTRICT to, FetchAhead& ahead) {
  const UnitTag d;
  for (int64_t k = begin; k < end; k += kAmxSide) {
    for (int64_t at = 0; at < p.head_dim * 2; at += kPieceBytes) {
      UnitVec units[4];
      transpose_piece(kv.keys + k, at, units);
      for (int64_t u = 0; u < 4; ++u) hn::Store(units[u], d, to + (at / 4 + u) * kAmxTileKv + k);
      ahead.fetch_some();
    }
  }
}

// Vector `index` of a row's scores, as they enter the softmax.
HWY_INLINE FloatVec amx_scores(const Problem& p, const KvTile& kv, int64_t r, KeyRange keys,
                               FloatVec s, int64_t index, const Scratch& scratch) {
  const FloatTag d;
  const IntTag di;
  if (p.attn_logits_soft_cap) {
    s = hn::Mul(tanh_log2(d, s), hn::Set(d, *p.attn_logits_soft_cap * kLog2E));
  }
  const auto key = hn::Iota(di, static_cast<int32_t>(index * kAmxSide));
  const auto inside = [&](int64_t first, int64_t last) HWY_ATTR {
    return hn::RebindMask(d, hn::AndNot(hn::Lt(key, hn::Set(di, static_cast<int32_t>(first))),
                                        hn::Lt(key, hn::Set(di, static_cast<int32_t>(last)))));
  };
  if (p.mask.masked_keys_count) {
    const auto visible =
        inside(scratch.visible_begin[r] - kv.start, scratch.visible_end[r] - kv.start);
    s = hn::IfThenElse(visible, s, hn::Add(s, hn::Set(d, p.mask_value * kLog2E)));
  }
  const FloatVec minus_infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
  return hn::IfThenElse(inside(keys.begin, keys.end), s, minus_infinity);
}

// The scores of row r of the block become its weights, bfloat16 [kAmxTileKv] in their place; it takes the keys
// `keys` of the tile, the others weigh 0. Their sum is a tree, the same whatever is masked. All of it stays in
// registers: against a pass over memory for each step that took 118.6 to 107.4 ms (best of 5, 512 @ 4096, head
// dim 128, one thread of a Xeon; 1 % in the medians of 16 threads).
HWY_INLINE void weigh_amx_row(const Problem& p, const KvTile& kv, int64_t r, KeyRange keys,
                              float factor, float* scores, const Scratch& scratch,
                              const State& state, float& rescale) {
  const FloatTag d;
  constexpr int kVectors = kAmxTileKv / kAmxSide;
  static_assert(kVectors == 8);
  const FloatVec by = hn::Set(d, factor);
  FloatVec s[kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) s[i] = hn::Mul(hn::Load(d, scores + i * kAmxSide), by);
  if (p.attn_logits_soft_cap || p.mask.masked_keys_count || keys.size() < kAmxTileKv) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) s[i] = amx_scores(p, kv, r, keys, s[i], i, scratch);
  }
  const float old_max = state.max[r];
  const FloatVec m = hn::Max(hn::Max(hn::Max(s[0], s[1]), hn::Max(s[2], s[3])),
                             hn::Max(hn::Max(s[4], s[5]), hn::Max(s[6], s[7])));
  const FloatVec new_max = hn::Max(hn::MaxOfLanes(d, m), hn::Set(d, old_max));
  const FloatVec minus_infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
  const FloatVec base = hn::IfThenZeroElse(hn::Eq(new_max, minus_infinity), new_max);
  rescale = 1;  // 2^0, where the maximum stays
  if (const float max = hn::GetLane(new_max); max != old_max) {
    rescale = hn::GetLane(exp2_nonpositive(d, hn::Sub(hn::Set(d, old_max), base)));
    state.max[r] = max;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) s[i] = exp2_nonpositive(d, hn::Sub(s[i], base));
  const FloatVec added =
      hn::SumOfLanes(d, hn::Add(hn::Add(hn::Add(s[0], s[1]), hn::Add(s[2], s[3])),
                                hn::Add(hn::Add(s[4], s[5]), hn::Add(s[6], s[7]))));
  state.sum[r] = hn::GetLane(hn::MulAdd(hn::Set(d, state.sum[r]), hn::Set(d, rescale), added));
  const hn::Repartition<uint16_t, FloatTag> d16;
  auto* weights = reinterpret_cast<uint16_t*>(scores);
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; i += 2) {
    hn::Store(PairDot::round(s[i], s[i + 1]), d16, weights + i * kAmxSide);
  }
}

// acc[row] *= rescale[row], for the rows whose maximum rose.
HWY_INLINE void rescale_rows(int64_t num_rows, const float* rescale, int64_t value_stride,
                             float* HWY_RESTRICT acc) {
  const FloatTag d;
  for (int64_t r = 0; r < num_rows; ++r) {
    if (rescale[r] == 1) continue;
    const FloatVec scale = hn::Set(d, rescale[r]);
    for (int64_t c = 0; c < value_stride; c += kAmxSide) {
      float* at = acc + r * value_stride + c;
      hn::Store(hn::Mul(hn::Load(d, at), scale), d, at);
    }
  }
}

// acc += weights * values, `tile_rows` rows (whole tiles) and keys [begin, end), whole blocks.
HWY_INLINE void add_amx_values(int64_t tile_rows, AmxMatrix weights, float* values, int64_t begin,
                               int64_t end, int64_t value_stride, AmxMatrix acc) {
  const AmxMatrix a{weights.at(0, begin / 2), weights.stride_bytes};
  const int64_t pairs = (end - begin) / 2;
  for (int64_t first = 0, width; first < value_stride; first += width) {
    width = value_width(value_stride - first, kAmxSide);
    float* block = values + first * (kAmxTileKv / 2) + begin / 2 * width;
    int64_t c = 0;
    for (; c + kAmxBlock <= width; c += kAmxBlock) {
      const AmxMatrix b{reinterpret_cast<char*>(block + c), width * 4};
      const AmxMatrix sums{acc.at(0, first + c), acc.stride_bytes};
      if (tile_rows == kAmxBlock) {
        multiply_block<2, false>(sums, a, b, pairs);
      } else {
        multiply_block<1, false>(sums, a, b, pairs);
      }
    }
    if (c < width) {
      multiply_last_column(tile_rows, {acc.at(0, first + c), acc.stride_bytes}, a,
                           {reinterpret_cast<char*>(block + c), width * 4}, pairs);
    }
  }
}

// One row over its own keys only: the tile holds infinities or NaN that a masked key would turn into
// 0 * inf. Its values are staged anew without the others, and it is the only row of its tile.
inline void add_amx_row(const Problem& p, const KvTile& kv, KeyRange keys, const float* weights,
                        float* values, int64_t value_stride, float* acc) {
  alignas(64) float own_weights[kAmxSide * kAmxTileKv / 2] = {};
  alignas(64) float own_acc[kAmxSide * kMaxHeadDim] = {};
  KvTile own = kv;
  own.begin = keys.begin;
  own.end = keys.end;
  stage_value_pairs(p, own, kAmxTileKv, kAmxBlock, value_stride, values);
  std::copy_n(weights, kAmxTileKv / 2, own_weights);
  std::copy_n(acc, value_stride, own_acc);
  add_amx_values(kAmxSide, {reinterpret_cast<char*>(own_weights), kAmxTileKv / 2 * 4}, values,
                 round_down(keys.begin, kAmxBlock), round_up(keys.end, kAmxBlock), value_stride,
                 {reinterpret_cast<char*>(own_acc), value_stride * 4});
  std::copy_n(own_acc, value_stride, acc);
}

// Rows [row, row + tile_rows) against the staged KV tile.
inline void attend_amx_tile(const Problem& p, const Block& block, int64_t row, int64_t tile_rows,
                            const KvTile& kv, bool values_finite, float factor,
                            const Scratch& scratch, const State& state, FetchAhead& ahead) {
  const int64_t num_rows = std::min(tile_rows, block.num_rows() - row);
  const int64_t value_stride = p.v_head_dim;
  KeyRange keys[kAmxBlock];  // within the tile, of each row
  KeyRange all{kAmxTileKv, 0};
  bool masked = false;
  for (int64_t r = 0; r < num_rows; ++r) {
    keys[r] = keys_of_row(scratch, kv, row + r);
    if (!keys[r].empty()) {
      all = {std::min(all.begin, keys[r].begin), std::max(all.end, keys[r].end)};
    }
  }
  if (all.empty()) return;
  const int64_t begin = round_down(all.begin, kAmxBlock), end = round_up(all.end, kAmxBlock);
  for (int64_t r = 0; r < num_rows; ++r) masked |= !covers(keys[r], begin, end);

  const AmxMatrix queries{reinterpret_cast<char*>(scratch.queries) + row * p.head_dim * 2,
                          p.head_dim * 2};
  const AmxMatrix scores{reinterpret_cast<char*>(scratch.scores), kAmxTileKv * 4};
  const AmxMatrix units{reinterpret_cast<char*>(scratch.keys), kAmxTileKv * 4};
  for (int64_t k = begin; k < end; k += kAmxBlock) {
    const AmxMatrix sums{scores.at(0, k), scores.stride_bytes};
    const AmxMatrix b{units.at(0, k), units.stride_bytes};
    if (tile_rows == kAmxBlock) {
      multiply_block<2, true>(sums, queries, b, p.head_dim / 2);
    } else {
      multiply_block<1, true>(sums, queries, b, p.head_dim / 2);
    }
    ahead.fetch_some();
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    float* row_scores = scratch.scores + r * kAmxTileKv;
    scratch.rescale[r] = 1;
    if (keys[r].empty()) {  // its weights are 0
      std::fill_n(row_scores, kAmxTileKv, 0.0f);
      continue;
    }
    weigh_amx_row(p, kv, row + r, keys[r], factor, row_scores, scratch, state, scratch.rescale[r]);
  }
  float* acc = state.acc + row * value_stride;
  rescale_rows(num_rows, scratch.rescale, value_stride, acc);
  if (!masked || values_finite) {
    add_amx_values(tile_rows, scores, scratch.values, begin, end, value_stride,
                   {reinterpret_cast<char*>(acc), value_stride * 4});
  } else {
    for (int64_t r = 0; r < num_rows; ++r) {
      if (keys[r].empty()) continue;
      add_amx_row(p, kv, keys[r], scratch.scores + r * kAmxTileKv, scratch.values, value_stride,
                  acc + r * value_stride);
    }
    stage_value_pairs(p, kv, kAmxTileKv, kAmxBlock, value_stride, scratch.values);
  }
}

inline void attend_amx(const Problem& p, const Block& block, KeyRange segment, KeyRange reach,
                       float factor, const Scratch& scratch, const State& state) {
  const int64_t rows = round_up(block.num_rows(), kAmxSide);
  const int64_t value_stride = p.v_head_dim;
  reset(state, rows, rows * value_stride);
  const AmxTiles tiles;
  FetchAhead ahead(p, 2);
  const int64_t steps = kAmxTileKv / kAmxSide * (p.head_dim * 2 / kPieceBytes) +
                        ceil_div(rows, kAmxBlock) * (kAmxTileKv / kAmxBlock);
  for_each_kv_tile(
      p, block, segment, reach, kAmxTileKv, [&](const KvTile& kv, const KvTile& next) HWY_ATTR {
        ahead.plan(next, steps);
        const int64_t begin = round_down(kv.begin, kAmxBlock), end = round_up(kv.end, kAmxBlock);
        transpose_keys(p, kv, begin, end, reinterpret_cast<uint32_t*>(scratch.keys), ahead);
        const bool finite =
            stage_value_pairs(p, kv, kAmxTileKv, kAmxBlock, value_stride, scratch.values);
        for (int64_t row = 0; row < rows; row += kAmxBlock) {
          attend_amx_tile(p, block, row, std::min(kAmxBlock, rows - row), kv, finite, factor,
                          scratch, state, ahead);
        }
      });
}

}  // namespace HWY_NAMESPACE
}  // namespace pagefill::cpu
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3

#endif  // include guard
