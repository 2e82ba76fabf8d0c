// Between memory of any dtype and layout and the float32 tiles: the only place where pages are gathered.
// Compiled once for each target.
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

template <class T>
inline constexpr bool kIsQuantised = is_quantised(DTypeOf<T>::value);

// Where the keys and values of one KV tile are. Key k stands at position start + k. The keys around
// [begin, end), up to whole steps, have the places of neighbours; their scores are masked.
struct KvTile {
  int64_t start;
  int64_t begin, end;
  const void* keys[kMaxTileKv];
  const void* values[kMaxTileKv];
  float key_scale[kMaxTileKv];  // of quantised caches only
  float value_scale[kMaxTileKv];
};

// Only AMX takes more keys at once than a step.
inline constexpr int64_t kFilledStep = HWY_TARGET == HWY_AVX3 ? kMaxKeyStep : kKeyStep;

// Copies the first and last filled elements of an array by key to the neighbours.
template <class T>
HWY_INLINE void fill_up(const KvTile& tile, T* by_key) {
  std::fill(by_key + round_down(tile.begin, kFilledStep), by_key + tile.begin, by_key[tile.begin]);
  std::fill(by_key + tile.end, by_key + round_up(tile.end, kFilledStep), by_key[tile.end - 1]);
}

inline constexpr int64_t kLine = 64;  // bytes of a cache line

// Asks for a line of the next KV tile while this one is computed: it comes from memory meanwhile, whatever
// the order of the pages. Into the second-level cache, or the first.
HWY_INLINE void fetch_line(const void* row, int64_t at, bool near) {
  const char* line = static_cast<const char*>(row) + at;
  if (near) {
    __builtin_prefetch(line, 0, 3);
  } else {
    __builtin_prefetch(line, 0, 2);
  }
}

// Rows are gathered two KV tiles ahead, and the first lines of each page of memory that they lie in asked for
// then: address translation and the core's own prefetcher have begun when FetchAhead comes. One row @ 32768 on
// Zen 4 takes 1.1 (heads 8/8) to 1.2 times (32/8) as long without; four lines are 3 % better than one or 16. On
// Zen 5 one line takes 1.02 to 1.17 times as long as eight, 12 take 0.98 of it for bfloat16.
inline constexpr int64_t kMemoryPage = 4096;
inline constexpr int64_t kTouchedBytes = 4 * kLine, kTouchedBytesNear = 12 * kLine;

// The pages of memory of a tile, asked for together. Nothing retires behind a prefetch whose address is being
// translated, and back to back the translations run side by side: a row @ 32768 takes 0.95 of the time that it
// takes with them page by page (float32, bfloat16), 0.89 where pages have 2 KiB (int8).
class Touches {
 public:
  explicit Touches(bool near) : near_(near), bytes_(near ? kTouchedBytesNear : kTouchedBytes) {}

  HWY_INLINE void add(const char* at, const char* end) {
    if (count_ == kRoom) ask();
    at_[count_] = at;
    end_[count_++] = std::min(end, at + bytes_);
  }

  HWY_INLINE void ask() {
    for (int i = 0; i < count_; ++i) fetch_line(at_[i], 0, near_);
    for (int i = 0; i < count_; ++i) {
      for (const char* at = at_[i] + kLine; at < end_[i]; at += kLine) fetch_line(at, 0, near_);
    }
    count_ = 0;
  }

 private:
  static constexpr int kRoom = 32;
  const char* at_[kRoom];
  const char* end_[kRoom];
  bool near_;
  int64_t bytes_;
  int count_ = 0;
};

// The rows of keys, or of values, of a KV head.
class RowsOfHead {
 public:
  RowsOfHead(const TensorView& cache, int64_t kv_head) {
    const int64_t size = dtype_size(cache.dtype);
    head_ = static_cast<const char*>(cache.data) + kv_head * cache.strides[0] * size;
    page_bytes_ = cache.strides[1] * size;
    slot_bytes_ = cache.strides[2] * size;
    row_bytes_ = cache.shape[3] * size;
  }

  // `count` rows of a physical page, from that slot on.
  HWY_INLINE void gather(int64_t page, int64_t slot, int64_t count, bool near, const void** rows,
                         Touches& touches) const {
    const char* at = head_ + page * page_bytes_ + slot * slot_bytes_;
    const char* const last = at + (count - 1) * slot_bytes_;
    const bool dense = slot_bytes_ == row_bytes_;
    const char* at_page = at;
    for (; at_page <= last; at_page += std::max(slot_bytes_, kMemoryPage)) {
      touches.add(at_page, (dense ? last : at_page) + row_bytes_);
    }
    // The last page of memory, where those are not aligned with the rows.
    const auto memory_page = [](const char* byte) {
      return reinterpret_cast<uintptr_t>(byte) / kMemoryPage;
    };
    at_page -= std::max(slot_bytes_, kMemoryPage);
    if (!near || memory_page(last) != memory_page(at_page)) touches.add(last, last + row_bytes_);
    for (int64_t i = 0; i < count; ++i) rows[i] = at + i * slot_bytes_;
  }

 private:
  const char* head_;
  int64_t page_bytes_, slot_bytes_, row_bytes_;
};

HWY_INLINE void gather_scale(const CacheScale& scale, int64_t kv_head, int64_t page, int64_t slot,
                             int64_t count, float* by_key) {
  static constexpr float kOne = 1;
  const bool given = scale.data != nullptr;  // else the strides are 0 as well
  const float* at = given ? scale.data + kv_head * scale.head_stride + page * scale.page_stride +
                                slot * scale.slot_stride
                          : &kOne;
  if (scale.slot_stride == 0) {
    std::fill_n(by_key, count, *at);
  } else {
    for (int64_t i = 0; i < count; ++i) by_key[i] = at[i * scale.slot_stride];
  }
}

// The tile of tile_kv keys at tile_start, as far as it lies in the segment, which is not empty.
inline void gather_tile(const Problem& p, const Block& block, KeyRange segment, int64_t tile_kv,
                        int64_t tile_start, bool near, KvTile& tile) {
  const KeyRange keys = intersect(segment, {tile_start, tile_start + tile_kv});
  tile.start = tile_start;
  tile.begin = keys.begin - tile_start;
  tile.end = keys.end - tile_start;
  const RowsOfHead key_rows(p.key_cache, block.kv_head), value_rows(p.value_cache, block.kv_head);
  const bool quantised = is_quantised(p.key_cache.dtype);
  Touches touches(near);
  const int64_t first = keys.begin - block.seq.kv_start;
  int64_t logical_page = first / p.page_size, slot = first % p.page_size;
  for (int64_t k = tile.begin, count; k < tile.end; k += count, ++logical_page, slot = 0) {
    count = std::min(tile.end - k, p.page_size - slot);
    const int64_t page = p.physical_page(block.sequence, logical_page);
    key_rows.gather(page, slot, count, near, tile.keys + k, touches);
    value_rows.gather(page, slot, count, near, tile.values + k, touches);
    if (!quantised) continue;
    gather_scale(p.key_scale, block.kv_head, page, slot, count, tile.key_scale + k);
    gather_scale(p.value_scale, block.kv_head, page, slot, count, tile.value_scale + k);
  }
  touches.ask();
  fill_up(tile, tile.keys);
  fill_up(tile, tile.values);
  if (!quantised) return;
  fill_up(tile, tile.key_scale);
  fill_up(tile, tile.value_scale);
}

// The keys of the tile that row r of the block takes, within the tile.
inline KeyRange keys_of_row(const Scratch& scratch, const KvTile& tile, int64_t r) {
  return intersect(KeyRange{tile.begin, tile.end}, KeyRange{scratch.attended_begin[r] - tile.start,
                                                            scratch.attended_end[r] - tile.start});
}

// Asks for the rows of the next KV tile while the present one is computed: a few lines at a time, keys and
// then values, since a burst of them would fill the core's miss buffers. Without it the staging waits for the
// third-level cache, 6 % of a prefill's time, and decode for memory.
class FetchAhead {
 public:
  FetchAhead(const Problem& p, int64_t element_size)
      : key_bytes_(p.head_dim * element_size),
        value_bytes_(p.v_head_dim * element_size),
        near_(fetches_near()) {
    asm("" : "+r"(zero_), "+r"(one_));
  }

  // All of the tile in `steps` calls of fetch_some.
  void plan(const KvTile& tile, int64_t steps) {
    row_ = tile.keys + tile.begin;
    end_ = tile.keys + tile.end;
    values_ = tile.values + tile.begin;
    values_end_ = tile.values + tile.end;
    row_bytes_ = key_bytes_;
    at_ = 0;
    const int64_t bytes = (tile.end - tile.begin) * (key_bytes_ + value_bytes_);
    bytes_a_step_ = ceil_div(bytes, steps);
    owed_ = 0;
  }

  HWY_INLINE void fetch_some() {
    int64_t owed = owed_ + bytes_a_step_, at = at_, zero = zero_;
    for (; owed > 0 && row_ != end_; owed -= kLine) {
      // Multiplications by 1 in the chain of addresses keep the lines apart. Back to back they block the loads
      // behind them: one row @ 32768, page size 16, reads 1.2 (heads 8/8) and 1.27 times (32/8) as fast with
      // two on Zen 4, and more slowly again with four. Zen 5 takes 0.95 of the time with one of two.
      fetch_line(*row_, at + zero, near_);
      zero *= one_;
      if (!near_) zero *= one_;
      at += kLine;
      if (at < row_bytes_) continue;
      at = 0;
      if (++row_ != end_ || end_ == values_end_) continue;
      row_ = values_;
      end_ = values_end_;
      row_bytes_ = value_bytes_;
    }
    owed_ = owed;
    at_ = at;
    zero_ = zero;
  }

 private:
  int64_t key_bytes_, value_bytes_;  // of a row
  bool near_;                        // into the first-level cache
  int64_t bytes_a_step_ = 0;
  int64_t owed_ = 0;
  const void* const* row_ = nullptr;  // where to go on
  const void* const* end_ = nullptr;
  const void* const* values_ = nullptr;
  const void* const* values_end_ = nullptr;
  int64_t row_bytes_ = 0;
  int64_t at_ = 0;
  int64_t zero_ = 0, one_ = 1;  // which the compiler does not know
};

// Calls visitor(tile, next tile) for each KV tile of the segment; after the last tile of `reach` comes an
// empty one.
template <class Visitor>
HWY_INLINE void for_each_kv_tile(const Problem& p, const Block& block, KeyRange segment,
                                 KeyRange reach, int64_t tile_kv, const Visitor& visitor) {
  if (segment.empty()) return;
  KvTile tiles[3];
  const bool near = fetches_near();
  const int64_t first = round_down(segment.begin, tile_kv);
  const auto gather = [&](int64_t start) {
    KvTile& tile = tiles[(start - first) / tile_kv % 3];
    if (start < reach.end) {
      gather_tile(p, block, reach, tile_kv, start, near, tile);
    } else {
      tile.begin = tile.end = 0;
    }
    return &tile;
  };
  const KvTile* tile = gather(first);
  const KvTile* next = gather(first + tile_kv);
  for (int64_t start = first; start < segment.end; start += tile_kv) {
    const KvTile* after_next = gather(start + 2 * tile_kv);
    visitor(*tile, *next);
    tile = next;
    next = after_next;
  }
}

inline void reset(const State& state, int64_t rows, int64_t acc_size) {
  std::fill_n(state.max, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(state.sum, rows, 0.0f);
  std::fill_n(state.acc, acc_size, 0.0f);
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

// A row of bfloat16 whose elements are all 0.
inline constexpr bfloat16 kZeroRow[kMaxHeadDim] = {};

inline void zero_values(int64_t value_stride, int64_t k, float* HWY_RESTRICT values) {
  const int64_t lanes = hn::Lanes(FloatTag());
  for (int64_t c = 0, width; c < value_stride; c += width) {
    width = value_width(value_stride - c, lanes);
    std::fill_n(values + c * kTileKv + k * width, width, 0.0f);
  }
}

// The tile's values to `values`; rows up to whole key steps become 0. Says whether all are finite, their
// scales included.
template <class T>
HWY_INLINE bool stage_values(FloatDot, const Problem& p, const KvTile& tile, int64_t value_stride,
                             float* values) {
  bool finite = true;
  for (int64_t k = tile.begin; k < tile.end; ++k) {
    const T* row = static_cast<const T*>(tile.values[k]);
    finite &= copy_values(row, p.v_head_dim, value_stride, k, values);
    if constexpr (kIsQuantised<T>) finite &= std::isfinite(tile.value_scale[k]);
  }
  for (int64_t k = round_down(tile.begin, kKeyStep); k < tile.begin; ++k) {
    zero_values(value_stride, k, values);
  }
  for (int64_t k = tile.end; k < round_up(tile.end, kKeyStep); ++k) {
    zero_values(value_stride, k, values);
  }
  return finite;
}

#if HWY_TARGET == HWY_AVX3
// The same for a pair of rows of bfloat16, whose elements become units, in steps of D.
template <class D>
HWY_INLINE bool copy_value_pairs(D d, const bfloat16* even, const bfloat16* odd, int64_t v_head_dim,
                                 int64_t tile_kv, int64_t value_stride, int64_t k,
                                 float* HWY_RESTRICT values) {
  const hn::Rebind<uint16_t, D> half;
  const hn::Repartition<uint16_t, D> d16;
  const int64_t n = hn::Lanes(d);
  const int64_t lanes = hn::Lanes(FloatTag());
  const auto magnitude = hn::Set(d16, uint16_t{0x7fff});
  auto largest =
      hn::Zero(d16);  // of the bits without their sign: infinity and NaN are above all others
  for (int64_t c = 0, width; c < v_head_dim; c += width) {
    width = value_width(value_stride - c, lanes);
    auto* to = reinterpret_cast<uint32_t*>(values + c * (tile_kv / 2) + k / 2 * width);
    const int64_t end = std::min(width, v_head_dim - c);
    for (int64_t i = 0; i < end; i += n) {
      const auto load = [&](const bfloat16* row) HWY_ATTR {
        return hn::PromoteTo(d, hn::LoadU(half, reinterpret_cast<const uint16_t*>(row + c + i)));
      };
      const auto pair = hn::Or(load(even), hn::ShiftLeft<16>(load(odd)));
      largest = hn::Max(largest, hn::And(hn::BitCast(d16, pair), magnitude));
      hn::StoreU(pair, d, to + i);
    }
    for (int64_t i = end; i < width; i += n) hn::StoreU(hn::Zero(d), d, to + i);
  }
  return hn::AllFalse(d16, hn::Gt(largest, hn::Set(d16, uint16_t{0x7f7f})));
}

// As stage_values, of bfloat16 and in pairs of keys; whole granules of keys.
HWY_INLINE bool stage_value_pairs(const Problem& p, const KvTile& tile, int64_t tile_kv,
                                  int64_t granule, int64_t value_stride, float* values) {
  bool finite = true;
  const auto row = [&](int64_t k) {
    const bool exists = tile.begin <= k && k < tile.end;
    return exists ? static_cast<const bfloat16*>(tile.values[k]) : kZeroRow;
  };
  for (int64_t k = round_down(tile.begin, granule); k < round_up(tile.end, granule); k += 2) {
    if (p.v_head_dim % 16 == 0) {
      const hn::CappedTag<uint32_t, 16> d;
      finite &=
          copy_value_pairs(d, row(k), row(k + 1), p.v_head_dim, tile_kv, value_stride, k, values);
    } else {
      const hn::CappedTag<uint32_t, 8> d;
      finite &=
          copy_value_pairs(d, row(k), row(k + 1), p.v_head_dim, tile_kv, value_stride, k, values);
    }
  }
  return finite;
}

template <class T>
HWY_INLINE bool stage_values(PairDot, const Problem& p, const KvTile& tile, int64_t value_stride,
                             float* values) {
  return stage_value_pairs(p, tile, kTileKv, kKeyStep, value_stride, values);
}
#endif

// Where the key of each key of the tile is: in the cache itself, or converted to float32 in
// `scratch.keys`.
template <class T, class Dot>
HWY_INLINE void stage_keys(const Problem& p, const KvTile& tile, const Scratch& scratch) {
  constexpr bool kInPlace = std::is_same_v<T, float> || Dot::kElements > 1;
  for (int64_t k = round_down(tile.begin, kKeyStep); k < round_up(tile.end, kKeyStep); ++k) {
    if constexpr (kInPlace) {
      scratch.key_rows[k] = tile.keys[k];
    } else {
      float* row = scratch.keys + k * p.head_dim;
      copy_row(static_cast<const T*>(tile.keys[k]), p.head_dim, row);
      scratch.key_rows[k] = row;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pagefill::cpu
HWY_AFTER_NAMESPACE();

#endif  // include guard
