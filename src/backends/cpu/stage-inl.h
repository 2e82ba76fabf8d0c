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
#include "backends/cpu/tile-inl.h"

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
HWY_INLINE bool copy_values(const T* from, int64_t v_head_dim, int64_t value_stride, int64_t k,
                            float* HWY_RESTRICT values) {
  const StepTag d;
  const int64_t n = hn::Lanes(d);
  const int64_t lanes = hn::Lanes(FloatTag());
  // x - x is 0 for finite x and NaN otherwise.
  auto nan_seen = hn::Zero(d);
  for (int64_t c = 0, width; c < v_head_dim; c += width) {
    width = value_width(value_stride - c, lanes);
    float* HWY_RESTRICT to = values + c * kTileKv + k * width;
    const int64_t end = std::min(width, v_head_dim - c);
    for (int64_t i = 0; i < end; i += n) {
      const auto v = load_floats(d, from + c + i);
      nan_seen = hn::Add(nan_seen, hn::Sub(v, v));
      hn::StoreU(v, d, to + i);
    }
    for (int64_t i = end; i < width; i += n) hn::StoreU(hn::Zero(d), d, to + i);
  }
  return hn::AllTrue(d, hn::Eq(nan_seen, hn::Zero(d)));
}

inline void zero_values(int64_t value_stride, int64_t k, float* HWY_RESTRICT values) {
  const int64_t lanes = hn::Lanes(FloatTag());
  for (int64_t c = 0, width; c < value_stride; c += width) {
    width = value_width(value_stride - c, lanes);
    std::fill_n(values + c * kTileKv + k * width, width, 0.0f);
  }
}

// Values of `keys`, a part of the tile at tile_start, to the tile; rows up to whole key steps become 0.
// Says whether all are finite.
template <class T>
HWY_INLINE bool stage_values(const Problem& p, const Block& block, int64_t tile_start,
                             KeyRange keys, int64_t value_stride, float* values) {
  const T* data = static_cast<const T*>(p.value_cache.data);
  bool finite = true;
  const auto stage = [&](int64_t position, int64_t offset) HWY_ATTR {
    finite &= copy_values(data + offset, p.v_head_dim, value_stride, position - tile_start, values);
  };
  for_each_slot(p, p.value_cache, block, keys, stage);
  const int64_t begin = keys.begin - tile_start, end = keys.end - tile_start;
  for (int64_t k = round_down(begin, kKeyStep); k < begin; ++k)
    zero_values(value_stride, k, values);
  for (int64_t k = end; k < round_up(end, kKeyStep); ++k) zero_values(value_stride, k, values);
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
  for (int64_t k = round_down(begin, kKeyStep); k < begin; ++k) rows[k] = rows[begin];
  for (int64_t k = end; k < round_up(end, kKeyStep); ++k) rows[k] = rows[end - 1];
}

// The rows of the next KV tile, asked for into the second-level cache while the present one is computed:
// a few lines for each step of keys, since a burst of them would fill the core's miss buffers. Without it
// the staging waits for the third-level cache, 6 % of a prefill's time.
class NextTile {
 public:
  NextTile(const Problem& p, int64_t element_size)
      : lengths_{p.head_dim * element_size, p.v_head_dim * element_size} {}

  // The rows of `keys`, to be fetched in `steps` equal steps.
  void plan(const Problem& p, const Block& block, KeyRange keys, int64_t steps) {
    num_rows_ = 0;
    row_ = 0;
    at_ = 0;
    add_rows(p, p.key_cache, block, keys, lengths_[0]);
    add_rows(p, p.value_cache, block, keys, lengths_[1]);
    const int64_t lines = ceil_div(keys.size() * (lengths_[0] + lengths_[1]), kLine);
    lines_a_step_ = ceil_div(lines, steps);
  }

  HWY_INLINE void fetch_some() {
    for (int64_t i = 0; i < lines_a_step_ && row_ < num_rows_; ++i) {
      __builtin_prefetch(rows_[row_] + at_, 0, 2);
      at_ += kLine;
      if (at_ >= lengths_[row_ * 2 >= num_rows_]) {
        at_ = 0;
        ++row_;
      }
    }
  }

 private:
  static constexpr int64_t kLine = 64;

  void add_rows(const Problem& p, const TensorView& cache, const Block& block, KeyRange keys,
                int64_t length) {
    const char* data = static_cast<const char*>(cache.data);
    const int64_t element_size = length / (&cache == &p.key_cache ? p.head_dim : p.v_head_dim);
    for_each_slot(p, cache, block, keys, [&](int64_t, int64_t offset) {
      rows_[num_rows_++] = data + offset * element_size;
    });
  }

  const char* rows_[2 * kTileKv];  // keys, then values
  int64_t lengths_[2];             // bytes of a row of keys, of values
  int64_t num_rows_ = 0;
  int64_t lines_a_step_ = 0;
  int64_t row_ = 0;  // where to go on
  int64_t at_ = 0;
};

}  // namespace HWY_NAMESPACE
}  // namespace pagefill::cpu
HWY_AFTER_NAMESPACE();

#endif  // include guard
