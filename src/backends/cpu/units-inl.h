// Keys in lanes: transposition, conversion. Compiled once for each target.
#if defined(PAGEFILL_CPU_UNITS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEFILL_CPU_UNITS_INL_H_
#undef PAGEFILL_CPU_UNITS_INL_H_
#else
#define PAGEFILL_CPU_UNITS_INL_H_
#endif

#include <hwy/highway.h>

#include "backends/cpu/math-inl.h"
#include "backends/cpu/stage-inl.h"

// Vectors of a fixed size, on a target that machines of today choose.
#undef PAGEFILL_CPU_KEYS_IN_LANES
#define PAGEFILL_CPU_KEYS_IN_LANES \
  (HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_NEON)

#if PAGEFILL_CPU_KEYS_IN_LANES
HWY_BEFORE_NAMESPACE();
namespace pagefill::cpu {
namespace HWY_NAMESPACE {

using UnitTag = hn::RebindToUnsigned<FloatTag>;
using UnitVec = hn::Vec<UnitTag>;

// Keys are transposed in pieces of 16 bytes, four units of 32 bits, whatever the dtype.
inline constexpr int64_t kPieceBytes = 16;

// Some of the next KV tile is asked for after every so many bytes of this one, or more: a step of either product
// that takes fewer asks every second, fourth, ... time.
inline constexpr int64_t kFetchBytes = 128;
constexpr int64_t steps_a_fetch(int64_t bytes_a_step) {
  return std::max<int64_t>(1, kFetchBytes / bytes_a_step);
}
// Of the keys' loop, whose steps are units of `vectors` vectors of keys, and of that over values.
constexpr int64_t units_a_fetch(int vectors) {
  return std::min<int64_t>(4, steps_a_fetch(vectors * sizeof(UnitVec)));
}
template <class T>
constexpr int64_t keys_a_fetch(int vectors) {
  return steps_a_fetch(vectors * sizeof(UnitVec) / sizeof(float) * sizeof(T));
}

HWY_INLINE const uint32_t* units_at(const void* key, int64_t at) {
  return reinterpret_cast<const uint32_t*>(static_cast<const char*>(key) + at);
}

// Bytes [at, at + 16) of every fourth key from `keys` on, one 128-bit block each.
HWY_INLINE UnitVec load_blocks(const void* const* keys, int64_t at) {
  const UnitTag d;
#if HWY_TARGET == HWY_AVX3
  // Loads that broadcast a block under a mask: no shuffle, which the transposition below needs.
  const auto merge = [&](uint32_t lanes, const void* key, UnitVec to) HWY_ATTR {
    const hn::Mask<UnitTag> mask{static_cast<__mmask16>(lanes)};
    return hn::IfThenElse(mask, hn::LoadDup128(d, units_at(key, at)), to);
  };
  UnitVec v = hn::LoadDup128(d, units_at(keys[0], at));
  v = merge(0x00f0, keys[4], v);
  v = merge(0x0f00, keys[8], v);
  return merge(0xf000, keys[12], v);
#elif HWY_TARGET == HWY_AVX2
  const hn::Half<UnitTag> half;
  return hn::Combine(d, hn::LoadU(half, units_at(keys[4], at)),
                     hn::LoadU(half, units_at(keys[0], at)));
#else
  return hn::LoadU(d, units_at(keys[0], at));
#endif
}

// Unit u of each of a vector's keys, for the four units of a piece.
HWY_INLINE void transpose_piece(const void* const* keys, int64_t at, UnitVec* HWY_RESTRICT units) {
  const UnitTag d;
  const hn::Repartition<uint64_t, UnitTag> d64;
  const UnitVec v0 = load_blocks(keys, at), v1 = load_blocks(keys + 1, at);
  const UnitVec v2 = load_blocks(keys + 2, at), v3 = load_blocks(keys + 3, at);
  const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, v0, v1));
  const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, v2, v3));
  const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, v0, v1));
  const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, v2, v3));
  units[0] = hn::BitCast(d, hn::InterleaveLower(d64, low01, low23));
  units[1] = hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23));
  units[2] = hn::BitCast(d, hn::InterleaveLower(d64, high01, high23));
  units[3] = hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23));
}

// Numbers e of a unit as the operand of Dot: itself, or one number of it as float32.
template <class T, class Dot>
inline constexpr int kOperandsOfUnit = 4 / (sizeof(T) * Dot::kElements);
template <class T, class Dot>
HWY_INLINE FloatVec operand(UnitVec unit, int e) {
  if constexpr (Dot::kElements > 1) return hn::BitCast(FloatTag(), unit);
  return unit_floats(T(), unit, e);
}

// A vector of values of a key, or of the pair of keys that begins with it; [begin, end) exist.
template <class T, class Dot>
HWY_INLINE FloatVec load_values(const void* const* values, int64_t k, int64_t begin, int64_t end,
                                int64_t column) {
  const FloatTag d;
  if constexpr (Dot::kElements == 1) {
    return load_floats(d, static_cast<const T*>(values[k]) + column);
  } else {
    const UnitTag du;
    const hn::Rebind<uint16_t, UnitTag> d16;
    const auto load = [&](int64_t key) HWY_ATTR {
      const void* row = begin <= key && key < end ? values[key] : kZeroRow;
      return hn::PromoteTo(du, hn::LoadU(d16, static_cast<const uint16_t*>(row) + column));
    };
    return hn::BitCast(d, hn::Or(load(k), hn::ShiftLeft<16>(load(k + 1))));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pagefill::cpu
HWY_AFTER_NAMESPACE();
#endif  // PAGEFILL_CPU_KEYS_IN_LANES

#endif  // include guard
