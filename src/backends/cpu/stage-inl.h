// Between memory of any dtype and layout and the float32 tiles: the only place where pages are gathered
// and dtypes are known. Compiled once for each target.
#if defined(PAGEFILL_CPU_STAGE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEFILL_CPU_STAGE_INL_H_
#undef PAGEFILL_CPU_STAGE_INL_H_
#else
#define PAGEFILL_CPU_STAGE_INL_H_
#endif

#include <hwy/highway.h>

#include "backends/cpu/config.h"
#include "backends/cpu/kernel.h"
#include "backends/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pagefill::cpu {
namespace HWY_NAMESPACE {

// Rows are copied in steps of at most 8 elements, which divide every head dim: no read goes past a row.
using StepTag = hn::CappedTag<float, 8>;

// Calls visitor(position, element offset of its slot) for each key of the range, in order.
template <class Visitor>
HWY_INLINE void for_each_slot(const Problem& p, const TensorView& cache, const Block& block,
                              KeyRange keys, const Visitor& visitor) {
  int64_t position = keys.begin;
  while (position < keys.end) {
    const int64_t slot = (position - block.seq.kv_start) % p.page_size;
    const int64_t end = std::min(keys.end, position + p.page_size - slot);
    int64_t offset = p.slot_offset(cache, block.sequence, block.seq, block.kv_head, position);
    for (; position < end; ++position, offset += cache.strides[2]) visitor(position, offset);
  }
}

template <class T>
HWY_INLINE void copy_row(const T* from, int64_t head_dim, float* HWY_RESTRICT to) {
  const StepTag d;
  for (int64_t i = 0; i < head_dim; i += hn::Lanes(d))
    hn::StoreU(load_floats(d, from + i), d, to + i);
}

// Copies a row of values to row k of the tile, block of columns by block, and says whether all of them
// are finite.
template <class T>
HWY_INLINE bool copy_values(const T* from, int64_t v_head_dim, int64_t k, int64_t value_block,
                            float* HWY_RESTRICT values) {
  const StepTag d;
  const int64_t n = hn::Lanes(d);
  // x - x is 0 for finite x and NaN otherwise.
  auto nan_seen = hn::Zero(d);
  for (int64_t c = 0; c < v_head_dim; c += value_block) {
    float* HWY_RESTRICT to = values + (c / value_block * kTileKv + k) * value_block;
    const int64_t end = std::min(value_block, v_head_dim - c);
    for (int64_t i = 0; i < end; i += n) {
      const auto v = load_floats(d, from + c + i);
      nan_seen = hn::Add(nan_seen, hn::Sub(v, v));
      hn::StoreU(v, d, to + i);
    }
    for (int64_t i = end; i < value_block; i += n) hn::StoreU(hn::Zero(d), d, to + i);
  }
  return hn::AllTrue(d, hn::Eq(nan_seen, hn::Zero(d)));
}

inline void zero_values(int64_t value_stride, int64_t k, int64_t value_block,
                        float* HWY_RESTRICT values) {
  for (int64_t c = 0; c < value_stride; c += value_block) {
    float* to = values + (c / value_block * kTileKv + k) * value_block;
    std::fill(to, to + value_block, 0.0f);
  }
}

// Values of `keys`, a part of the tile at tile_start, to the tile; rows up to whole key steps become 0.
// Says whether all are finite.
template <class T>
HWY_INLINE bool stage_values(const Problem& p, const Block& block, int64_t tile_start,
                             KeyRange keys, int64_t value_block, int64_t value_stride,
                             float* values) {
  const T* data = static_cast<const T*>(p.value_cache.data);
  bool finite = true;
  const auto stage = [&](int64_t position, int64_t offset) HWY_ATTR {
    finite &= copy_values(data + offset, p.v_head_dim, position - tile_start, value_block, values);
  };
  for_each_slot(p, p.value_cache, block, keys, stage);
  const int64_t begin = keys.begin - tile_start, end = keys.end - tile_start;
  for (int64_t k = begin / kKeyStep * kKeyStep; k < begin; ++k) {
    zero_values(value_stride, k, value_block, values);
  }
  for (int64_t k = end; k < round_up(end, kKeyStep); ++k) {
    zero_values(value_stride, k, value_block, values);
  }
  return finite;
}

// Where the float32 key of each key of the tile is: in the cache itself, or converted to `scratch.keys`.
// Keys up to whole key steps are stood in for by a neighbour; their scores are masked.
template <class T>
HWY_INLINE void stage_keys(const Problem& p, const Block& block, int64_t tile_start, KeyRange keys,
                           const Scratch& scratch) {
  const T* data = static_cast<const T*>(p.key_cache.data);
  const float** rows = scratch.key_rows;
  const auto stage = [&](int64_t position, int64_t offset) HWY_ATTR {
    const int64_t k = position - tile_start;
    if constexpr (std::is_same_v<T, float>) {
      rows[k] = data + offset;
    } else {
      float* row = scratch.keys + k * p.head_dim;
      copy_row(data + offset, p.head_dim, row);
      rows[k] = row;
    }
  };
  for_each_slot(p, p.key_cache, block, keys, stage);
  const int64_t begin = keys.begin - tile_start, end = keys.end - tile_start;
  for (int64_t k = begin / kKeyStep * kKeyStep; k < begin; ++k) rows[k] = rows[begin];
  for (int64_t k = end; k < round_up(end, kKeyStep); ++k) rows[k] = rows[end - 1];
}

}  // namespace HWY_NAMESPACE
}  // namespace pagefill::cpu
HWY_AFTER_NAMESPACE();

#endif  // include guard
