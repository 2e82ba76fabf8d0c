// A block of rows against one segment of keys, and what comes before and after. Compiled once for each
// target.
#if defined(PAGEFILL_CPU_FORWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEFILL_CPU_FORWARD_INL_H_
#undef PAGEFILL_CPU_FORWARD_INL_H_
#else
#define PAGEFILL_CPU_FORWARD_INL_H_
#endif

#include <hwy/highway.h>

#include "backends/cpu/amx-inl.h"
#include "backends/cpu/blocks-inl.h"
#include "backends/cpu/config.h"
#include "backends/cpu/few_rows-inl.h"
#include "backends/cpu/kernel.h"
#include "backends/cpu/stage-inl.h"
#include "backends/cpu/targets.h"
#include "backends/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pagefill::cpu {
namespace HWY_NAMESPACE {

// What the queries are multiplied with, so that the scores come out in units of log2(e); with a soft cap,
// as the argument that tanh_log2 takes.
inline float score_factor(const Problem& p) {
  return p.attn_logits_soft_cap ? p.softmax_scale * (2 * kLog2E / *p.attn_logits_soft_cap)
                                : p.softmax_scale * kLog2E;
}

// A row tile of a block: its place among the block's rows, and the keys that its rows take.
struct RowTile {
  int64_t begin;      // first row within the block
  int64_t rows;       // whole vectors
  KeyRange attended;  // any row takes part
  KeyRange unmasked;  // all rows take part
  KeyRange visible;   // all rows see the key: no mask_value either
};

inline RowTile row_tile(const Block& block, const Scratch& scratch, int64_t begin, int64_t rows) {
  constexpr int64_t kFar = std::numeric_limits<int32_t>::max();
  RowTile tile{begin, rows, {kFar, 0}, {0, kFar}, {0, kFar}};
  const int64_t end = std::min(begin + rows, block.num_rows());
  for (int64_t r = begin; r < end; ++r) {
    const KeyRange attended{scratch.attended_begin[r], scratch.attended_end[r]};
    if (!attended.empty()) {
      tile.attended.begin = std::min(tile.attended.begin, attended.begin);
      tile.attended.end = std::max(tile.attended.end, attended.end);
    }
    tile.unmasked.begin = std::max(tile.unmasked.begin, attended.begin);
    tile.unmasked.end = std::min(tile.unmasked.end, attended.end);
    tile.visible.begin = std::max<int64_t>(tile.visible.begin, scratch.visible_begin[r]);
    tile.visible.end = std::min<int64_t>(tile.visible.end, scratch.visible_end[r]);
  }
  return tile;
}

template <class Dot, int kVectors>
HWY_INLINE void score_tile(const Problem& p, const RowTile& tile, int64_t begin, int64_t end,
                           float factor, const Scratch& scratch, FetchAhead& ahead) {
  const float* queries = scratch.queries + tile.begin * p.head_dim;
  for (int64_t k = begin; k < end; k += kBlocking.keys) {
    Blocks<Dot>::template score_keys<kVectors>(queries, p.head_dim, scratch.key_rows + k, factor,
                                               scratch.scores + k * tile.rows);
    ahead.fetch_some();
  }
}

// One block of columns: it stays in the first-level cache while all rows pass. Only rows that exist: a
// decode row is not computed as the six that its granule has.
template <class Dot, int kVectors>
HWY_INLINE void add_columns(const float* values, const RowTile& tile, int64_t num_rows,
                            int64_t begin, int64_t end, int64_t value_stride,
                            const Scratch& scratch, float* acc, FetchAhead& ahead) {
  int64_t row = 0;
  const auto add = [&]<int kRows>(std::integral_constant<int, kRows>) HWY_ATTR {
    for (; row + kRows <= num_rows; row += kRows) {
      Blocks<Dot>::template add_values<kRows, kVectors>(scratch.scores + row, tile.rows, values,
                                                        begin, end, scratch.rescale + row,
                                                        acc + row * value_stride, value_stride);
      ahead.fetch_some();
    }
  };
  add(std::integral_constant<int, kBlocking.value_rows>());
  add(std::integral_constant<int, 4>());
  add(std::integral_constant<int, 2>());
  add(std::integral_constant<int, 1>());
}

template <class Dot>
HWY_INLINE void add_tile(const RowTile& tile, int64_t num_rows, int64_t begin, int64_t end,
                         int64_t lanes, int64_t value_stride, const Scratch& scratch, float* acc,
                         FetchAhead& ahead) {
  for (int64_t c = 0, width; c < value_stride; c += width) {
    width = value_width(value_stride - c, lanes);
    const float* values = scratch.values + c * (kTileKv / Dot::kElements);
    switch (width / lanes) {
      case 1:
        add_columns<Dot, 1>(values, tile, num_rows, begin, end, value_stride, scratch, acc + c,
                            ahead);
        break;
      case 2:
        add_columns<Dot, 2>(values, tile, num_rows, begin, end, value_stride, scratch, acc + c,
                            ahead);
        break;
      case 3:
        if constexpr (kBlocking.value_vectors >= 3) {
          add_columns<Dot, 3>(values, tile, num_rows, begin, end, value_stride, scratch, acc + c,
                              ahead);
        }
        break;
      default:
        if constexpr (kBlocking.value_vectors >= 4) {
          add_columns<Dot, 4>(values, tile, num_rows, begin, end, value_stride, scratch, acc + c,
                              ahead);
        }
        break;
    }
  }
}

template <class Dot>
void add_tile_row_by_row(const RowTile& tile, int64_t num_rows, int64_t tile_start, int64_t begin,
                         int64_t end, int64_t value_stride, const Scratch& scratch, float* acc) {
  for (int64_t r = 0; r < num_rows; ++r) {
    const int64_t first = std::max(begin, scratch.attended_begin[tile.begin + r] - tile_start);
    const int64_t last = std::min(end, scratch.attended_end[tile.begin + r] - tile_start);
    Blocks<Dot>::add_values_of_row(scratch.scores + r, tile.rows, scratch.values, first, last,
                                   scratch.rescale[r], acc + r * value_stride, value_stride);
  }
}

// One row tile against the keys [begin, end) of a KV tile whose keys and values are staged.
template <class Dot>
void attend_tile(const Problem& p, const Block& block, const RowTile& tile, const KvTile& kv,
                 int64_t begin, int64_t end, bool values_finite, int64_t lanes,
                 const Scratch& scratch, const State& state, FetchAhead& ahead) {
  const float factor = score_factor(p);
  switch (tile.rows / lanes) {
    case 1:
      score_tile<Dot, 1>(p, tile, begin, end, factor, scratch, ahead);
      break;
    case 2:
      score_tile<Dot, 2>(p, tile, begin, end, factor, scratch, ahead);
      break;
    default:
      score_tile<Dot, 3>(p, tile, begin, end, factor, scratch, ahead);
      break;
  }
  const bool quantised = is_quantised(p.key_cache.dtype);
  if (quantised) scale_by_key(scratch.scores, tile.rows, begin, end, kv.key_scale);
  if (p.attn_logits_soft_cap) {
    soft_cap_scores(scratch.scores + begin * tile.rows, (end - begin) * tile.rows,
                    *p.attn_logits_soft_cap * kLog2E);
  }
  if (p.mask.masked_keys_count && !covers(tile.visible, kv.start + begin, kv.start + end)) {
    select_scores<false>(scratch.scores, tile.rows, kv.start, begin, end,
                         scratch.visible_begin + tile.begin, scratch.visible_end + tile.begin,
                         p.mask_value * kLog2E);
  }
  const bool masked = !covers(tile.unmasked, kv.start + begin, kv.start + end);
  if (masked) {
    select_scores<true>(scratch.scores, tile.rows, kv.start, begin, end,
                        scratch.attended_begin + tile.begin, scratch.attended_end + tile.begin, 0);
  }
  softmax<Dot>(scratch.scores, tile.rows, begin, end, state.max + tile.begin,
               state.sum + tile.begin, scratch.rescale);
  if (quantised) scale_by_key(scratch.scores, tile.rows, begin, end, kv.value_scale);
  const int64_t value_stride = round_up(p.v_head_dim, lanes);
  const int64_t num_rows = std::min(tile.rows, block.num_rows() - tile.begin);
  float* acc = state.acc + tile.begin * value_stride;
  if (masked && !values_finite) {
    add_tile_row_by_row<Dot>(tile, num_rows, kv.start, begin, end, value_stride, scratch, acc);
  } else {
    add_tile<Dot>(tile, num_rows, begin, end, lanes, value_stride, scratch, acc, ahead);
  }
}

template <class T, class Dot>
void attend_rows(const Problem& p, const Block& block, KeyRange segment, KeyRange reach,
                 const Scratch& scratch, const State& state) {
  const int64_t lanes = hn::Lanes(FloatTag());
  const int64_t value_stride = round_up(p.v_head_dim, lanes);
  const int64_t rows = round_up(block.num_rows(), lanes);
  reset(state, rows, rows * value_stride);

  RowTile tiles[kMaxRowTiles];
  int64_t num_tiles = 0;
  for (int64_t row = 0; row < rows; row += tiles[num_tiles++].rows) {
    tiles[num_tiles] = row_tile(block, scratch, row, tile_rows(rows - row, lanes));
  }

  const int64_t steps =
      num_tiles * (kTileKv / kBlocking.keys) +
      rows / kBlocking.value_rows * ceil_div(value_stride, kBlocking.value_vectors * lanes);
  FetchAhead ahead(p, sizeof(T));
  for_each_kv_tile(
      p, block, segment, reach, kTileKv, [&](const KvTile& kv, const KvTile& next) HWY_ATTR {
        ahead.plan(next, steps);
        stage_keys<T, Dot>(p, kv, scratch);
        const bool finite = stage_values<T>(Dot(), p, kv, value_stride, scratch.values);
        for (int64_t t = 0; t < num_tiles; ++t) {
          const KeyRange keys =
              intersect({kv.start + kv.begin, kv.start + kv.end}, tiles[t].attended);
          if (keys.empty()) continue;
          const int64_t begin = round_down(keys.begin - kv.start, kKeyStep);
          const int64_t end = round_up(keys.end - kv.start, kKeyStep);
          attend_tile<Dot>(p, block, tiles[t], kv, begin, end, finite, lanes, scratch, state,
                           ahead);
        }
      });
}

template <class T, class Dot>
void attend_segment_as(const Problem& p, const Block& block, KeyRange segment, KeyRange reach,
                       const Scratch& scratch, const State& state) {
  if (suits_few_rows(p, block)) {
    return attend_few_rows<T, Dot>(p, block, segment, reach, score_factor(p), scratch, state);
  }
  attend_rows<T, Dot>(p, block, segment, reach, scratch, state);
}

// The state of the block over one segment's keys.
inline void attend_segment(const Problem& p, const Block& block, KeyRange segment, KeyRange reach,
                           const Scratch& scratch, const State& state) {
  const auto attend = [&]<class T>(T) {
    attend_segment_as<T, FloatDot>(p, block, segment, reach, scratch, state);
  };
  switch (p.key_cache.dtype) {
    case DType::kBFloat16:
      return attend(bfloat16());
    case DType::kFloat16:
      return attend(float16());
    case DType::kInt8:
      return attend(int8_t());
    case DType::kFloat8E4M3:
      return attend(float8_e4m3());
    case DType::kFloat8E5M2:
      return attend(float8_e5m2());
    default:
      return attend(float());
  }
}

// Numbers [0, length) of kRows rows become columns of a matrix [length][stride]; load(r, i) gives those of row
// r from i on.
template <int kRows, class D, class Load>
HWY_INLINE void load_columns(D d, int64_t length, float* to, int64_t stride, const Load& load) {
  HWY_ALIGN float step[kRows * 8];
  const int64_t n = hn::Lanes(d);
  for (int64_t i = 0; i < length; i += n, to += n * stride) {
    float* block = stride == kRows ? to : step;
    if constexpr (kRows == 4) {
      hn::StoreInterleaved4(load(0, i), load(1, i), load(2, i), load(3, i), d, block);
    } else if constexpr (kRows == 2) {
      hn::StoreInterleaved2(load(0, i), load(1, i), d, block);
    } else {
      hn::StoreU(load(0, i), d, block);
    }
    if (block == to) continue;
    for (int64_t j = 0; j < n; ++j) {
      __builtin_memcpy(to + j * stride, step + j * kRows, kRows * sizeof(float));
    }
  }
}

template <class Visitor>
HWY_INLINE void with_query(const Problem& p, const Visitor& visitor) {
  switch (p.query.dtype) {
    case DType::kBFloat16:
      return visitor(static_cast<const bfloat16*>(p.query.data));
    case DType::kFloat16:
      return visitor(static_cast<const float16*>(p.query.data));
    default:
      return visitor(static_cast<const float*>(p.query.data));
  }
}

// The ranges of keys of row r of the block; returns the offset of its query. The lanes past the last row
// repeat it.
inline int64_t load_ranges(const Problem& p, const Block& block, int64_t r,
                           const Scratch& scratch) {
  const int64_t row = block.row_begin + std::min(r, block.num_rows() - 1);
  const int64_t token = row / p.group, q_head = block.kv_head * p.group + row % p.group;
  const int64_t position = block.seq.position(token);
  const KeyRange attended = p.mask.attended(block.seq, position);
  const KeyRange visible = p.mask.visible(block.seq, position);
  scratch.attended_begin[r] = static_cast<int32_t>(attended.begin);
  scratch.attended_end[r] = static_cast<int32_t>(attended.end);
  scratch.visible_begin[r] = static_cast<int32_t>(visible.begin);
  scratch.visible_end[r] = static_cast<int32_t>(visible.end);
  return (block.seq.query_start + token) * p.query.strides[0] + q_head * p.query.strides[1];
}

// Rows r, r + 1, ... of the block into columns of their tile.
template <int kRows, class Dot>
void load_rows(const Problem& p, const Block& block, int64_t r, float factor,
               const Scratch& scratch, float* columns, int64_t stride) {
  int64_t offset[kRows];
  for (int i = 0; i < kRows; ++i) offset[i] = load_ranges(p, block, r + i, scratch);
  if constexpr (Dot::kElements == 1) {
    with_query(p, [&]<class T>(const T* query) HWY_ATTR {
      const StepTag d;
      const auto scale = hn::Set(d, factor);
      load_columns<kRows>(d, p.head_dim, columns, stride, [&](int row, int64_t i) HWY_ATTR {
        return hn::Mul(load_floats(d, query + offset[row] + i), scale);
      });
    });
  } else {
    const auto* query = static_cast<const bfloat16*>(p.query.data);
    const hn::CappedTag<float, 4> d;  // four pairs divide every head dim
    load_columns<kRows>(d, p.head_dim / 2, columns, stride, [&](int row, int64_t i) HWY_ATTR {
      return hn::LoadU(d, reinterpret_cast<const float*>(query + offset[row] + 2 * i));
    });
  }
}

template <class Dot>
void load_queries_as(const Problem& p, const Block& block, const Scratch& scratch) {
  const int64_t lanes = hn::Lanes(FloatTag());
  const int64_t rows = round_up(block.num_rows(), lanes);
  const float factor = score_factor(p);
  const bool few = suits_few_rows(p, block);
  for (int64_t begin = 0, n; begin < block.num_rows(); begin += n) {
    n = few ? few_rows_together(block.num_rows() - begin) : tile_rows(rows - begin, lanes);
    float* tile = scratch.queries + begin * p.head_dim;
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
      load_rows<4, Dot>(p, block, begin + i, factor, scratch, tile + i, n);
    }
    for (; i + 2 <= n; i += 2) {
      load_rows<2, Dot>(p, block, begin + i, factor, scratch, tile + i, n);
    }
    if (i < n) load_rows<1, Dot>(p, block, begin + i, factor, scratch, tile + i, n);
  }
}

// Weights of two states under their common maximum; a state that has seen nothing weighs 0.
inline void merge(const Problem& p, const Block& block, const State& total, const State& part) {
  const FloatTag d;
  const int64_t lanes = hn::Lanes(d);
  const int64_t value_stride = round_up(p.v_head_dim, lanes);
  const int64_t rows = round_up(block.num_rows(), lanes);
  const FloatVec minus_infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int64_t r = 0; r < rows; r += lanes) {
    const FloatVec a = hn::Load(d, total.max + r), b = hn::Load(d, part.max + r);
    const FloatVec max = hn::Max(a, b);
    const FloatVec base = hn::IfThenZeroElse(hn::Eq(max, minus_infinity), max);
    const FloatVec a_weight = exp2_nonpositive(d, hn::Sub(a, base));
    const FloatVec b_weight = exp2_nonpositive(d, hn::Sub(b, base));
    const FloatVec sum = hn::MulAdd(hn::Load(d, part.sum + r), b_weight,
                                    hn::Mul(hn::Load(d, total.sum + r), a_weight));
    HWY_ALIGN float a_rows[16], b_rows[16];
    hn::Store(a_weight, d, a_rows);
    hn::Store(b_weight, d, b_rows);
    hn::Store(max, d, total.max + r);
    hn::Store(sum, d, total.sum + r);
    const int64_t end = std::min(lanes, block.num_rows() - r);
    for (int64_t i = 0; i < end; ++i) {
      float* HWY_RESTRICT to = total.acc + (r + i) * value_stride;
      const float* HWY_RESTRICT from = part.acc + (r + i) * value_stride;
      const FloatVec wa = hn::Set(d, a_rows[i]), wb = hn::Set(d, b_rows[i]);
      for (int64_t c = 0; c < value_stride; c += lanes) {
        const FloatVec scaled = hn::Mul(hn::Load(d, to + c), wa);
        hn::Store(hn::MulAdd(hn::Load(d, from + c), wb, scaled), d, to + c);
      }
    }
  }
}

// out = acc * weight / sum, where `weight` brings the state under the maximum that includes the sink. A
// row without a weight to give (it sees no key, or all of its scores are -inf) has weight 0, and weighs nothing,
// with lse -inf, where there is no sink either; beside one, 0 * v may be a NaN.
struct RowResult {
  float weight, sum;
  bool weighs_nothing;
  float lse;  // where it is asked for: a logarithm costs as much as writing the row
};

// One row of the result, divided and rounded; vectors of D divide v_head_dim. Adding +0 makes -0 of an underflow
// +0: which zero a sum ends in may depend on the masked keys beside it. NaN gets one encoding for the same reason.
template <class D, class T>
HWY_INLINE void write_row(D d, const float* acc, const RowResult& result, int64_t v_head_dim,
                          T* to) {
  const int64_t n = hn::Lanes(d);
  const auto nan = hn::Set(d, std::numeric_limits<float>::quiet_NaN());
  for (int64_t c = 0; c < v_head_dim; c += n) {
    const auto scaled = hn::Mul(hn::LoadU(d, acc + c), hn::Set(d, result.weight));
    auto out = hn::Add(hn::Div(scaled, hn::Set(d, result.sum)), hn::Zero(d));
    out = hn::IfThenElse(hn::Eq(out, out), out, nan);
    if (result.weighs_nothing) out = hn::Zero(d);
    store_rounded(d, out, to + c);
  }
}

inline RowResult row_result(float max, float sum, bool has_sink, float sink, bool wants_lse) {
  const FloatTag d;
  const float minus_infinity = -std::numeric_limits<float>::infinity();
  const bool sink_weighs = has_sink && sink != minus_infinity;
  if (sum == 0) return {0, 1, !sink_weighs, has_sink ? sink : minus_infinity};
  RowResult result{1, sum, false, 0};
  float base = max;
  if (sink_weighs) {
    const float sink_log2 = sink * kLog2E;
    base = std::max(max, sink_log2);
    HWY_ALIGN float weights[16];
    hn::Store(exp2_nonpositive(d, hn::Set(d, max - base)), d, weights);
    result.weight = weights[0];
    hn::Store(exp2_nonpositive(d, hn::Set(d, sink_log2 - base)), d, weights);
    result.sum = sum * result.weight + weights[0];
  }
  if (!wants_lse) return result;
  const double lse = (base + std::log2(static_cast<double>(result.sum))) * 0.693147180559945309417;
  result.lse = std::isnan(lse) ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(lse);
  return result;
}

template <class D>
void write_rows(D d, const Problem& p, const Block& block, const State& state) {
  const int64_t lanes = hn::Lanes(FloatTag());
  const int64_t value_stride = round_up(p.v_head_dim, lanes);
  for (int64_t r = 0; r < block.num_rows(); ++r) {
    const int64_t row = block.row_begin + r;
    const int64_t token = block.seq.query_start + row / p.group;
    const int64_t q_head = block.kv_head * p.group + row % p.group;
    const RowResult result = row_result(state.max[r], state.sum[r], p.sinks.given(),
                                        p.sinks.given() ? p.sink(q_head) : 0, p.lse.given());
    const float* acc = state.acc + r * value_stride;
    const int64_t offset = token * p.output.strides[0] + q_head * p.output.strides[1];
    switch (p.output.dtype) {
      case DType::kBFloat16:
        write_row(d, acc, result, p.v_head_dim, static_cast<bfloat16*>(p.output.data) + offset);
        break;
      case DType::kFloat16:
        write_row(d, acc, result, p.v_head_dim, static_cast<float16*>(p.output.data) + offset);
        break;
      default:
        write_row(d, acc, result, p.v_head_dim, static_cast<float*>(p.output.data) + offset);
    }
    if (p.lse.given()) {
      static_cast<float*>(p.lse.data)[token * p.lse.strides[0] + q_head * p.lse.strides[1]] =
          result.lse;
    }
  }
}

inline void write_output(const Problem& p, const Block& block, const State& state) {
  const FloatTag d;
  if (p.v_head_dim % static_cast<int64_t>(hn::Lanes(d)) == 0) {
    write_rows(d, p, block, state);
  } else {
    write_rows(StepTag(), p, block, state);
  }
}

inline Kernel kernel() {
  return {target_name(HWY_TARGET),
          static_cast<int64_t>(hn::Lanes(FloatTag())),
          kTileKv,
          load_queries_as<FloatDot>,
          attend_segment,
          merge,
          write_output};
}

#if HWY_TARGET == HWY_AVX3
inline Kernel pair_kernel() {
  Kernel pairs = kernel();
  pairs.target = "avx512_bf16";
  pairs.load_queries = [](const Problem& p, const Block& block, const Scratch& scratch) {
    return (has_pairs(p) ? load_queries_as<PairDot> : load_queries_as<FloatDot>)(p, block, scratch);
  };
  pairs.attend_segment = [](const Problem& p, const Block& block, KeyRange segment, KeyRange reach,
                            const Scratch& scratch, const State& state) {
    return (has_pairs(p) ? attend_segment_as<bfloat16, PairDot> : attend_segment)(
        p, block, segment, reach, scratch, state);
  };
  return pairs;
}

// The queries of a block as AMX takes them: bfloat16 [rows][head_dim].
inline void load_amx_queries(const Problem& p, const Block& block, const Scratch& scratch) {
  auto* to = reinterpret_cast<bfloat16*>(scratch.queries);
  for (int64_t r = 0; r < round_up(block.num_rows(), kAmxSide); ++r, to += p.head_dim) {
    const int64_t offset = load_ranges(p, block, r, scratch);
    std::copy_n(static_cast<const bfloat16*>(p.query.data) + offset, p.head_dim, to);
  }
}

inline Kernel amx_kernel() {
  Kernel amx = kernel();
  amx.target = "amx_bf16";
  amx.tile_kv = kAmxTileKv;
  amx.load_queries = [](const Problem& p, const Block& block, const Scratch& scratch) {
    return (suits_amx(p) ? load_amx_queries : load_queries_as<FloatDot>)(p, block, scratch);
  };
  amx.attend_segment = [](const Problem& p, const Block& block, KeyRange segment, KeyRange reach,
                          const Scratch& scratch, const State& state) {
    if (suits_amx(p)) return attend_amx(p, block, segment, reach, score_factor(p), scratch, state);
    attend_segment(p, block, segment, reach, scratch, state);
  };
  return amx;
}
#else
inline Kernel pair_kernel() { return {}; }
inline Kernel amx_kernel() { return {}; }
#endif

}  // namespace HWY_NAMESPACE
}  // namespace pagefill::cpu
HWY_AFTER_NAMESPACE();

#endif  // include guard
