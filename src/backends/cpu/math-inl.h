// exp2, tanh and the conversions of staging. Compiled once for each target.
#if defined(PAGEFILL_CPU_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEFILL_CPU_MATH_INL_H_
#undef PAGEFILL_CPU_MATH_INL_H_
#else
#define PAGEFILL_CPU_MATH_INL_H_
#endif

#include <hwy/highway.h>

#include "pagefill/float_types.h"

HWY_BEFORE_NAMESPACE();
namespace pagefill::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes: the tiles are sized for AVX-512, and a wider SVE works in 512 bits.
using FloatTag = hn::CappedTag<float, 16>;
using IntTag = hn::RebindToSigned<FloatTag>;
using FloatVec = hn::Vec<FloatTag>;

inline constexpr float kLog2E = 1.44269504088896340736f;

// (2^f - 1) / f on [-0.5, 0.5]: minimax for 2^f of degree 6 with the constant held at 1. Its own relative
// error is 2.0e-9; evaluated in float32, 2^f is within 7.9e-8 (1.33 units of 2^-24). Horner on f; targets
// with FMA round alike.
HWY_INLINE FloatVec exp2_fraction(FloatTag d, FloatVec f) {
  FloatVec p = hn::Set(d, 1.535336288e-4f);
  p = hn::MulAdd(p, f, hn::Set(d, 1.339887504e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 9.618437359e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 5.550332470e-2f));
  p = hn::MulAdd(p, f, hn::Set(d, 2.402264791e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 6.931472029e-1f));
  return p;
}

// Adding this leaves no bits for a fraction: x + kRoundShift holds x rounded to nearest in its low bits,
// and subtracting it again gives that integer as a float. For |x| < 2^22.
inline constexpr float kRoundShift = 0x1.8p23f;

// 2^x for x <= 0; 0 below -126 (and for -inf), NaN for NaN. 2^0 is 1 exactly.
HWY_INLINE FloatVec exp2_nonpositive(FloatTag d, FloatVec x) {
  const IntTag di;
  const FloatVec shift = hn::Set(d, kRoundShift);
  const FloatVec shifted = hn::Add(x, shift);
  const FloatVec f = hn::Sub(x, hn::Sub(shifted, shift));
  const FloatVec p = hn::MulAdd(exp2_fraction(d, f), f, hn::Set(d, 1.0f));
  // The low bits of `shifted` are the integer; they go into the exponent.
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  const FloatVec result = hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), result);
}

// tanh(x / (2 * log2(e))) = (2^x - 1) / (2^x + 1), with 2^x - 1 built without cancellation: 2^n * r +
// (2^n - 1) for x = n + f, r = 2^f - 1. The clamp at 40 is beyond where float32's tanh is 1.
HWY_INLINE FloatVec tanh_log2(FloatTag d, FloatVec x) {
  const IntTag di;
  const FloatVec limit = hn::Set(d, 40.0f);
  // Select, not Min and Max: NaN stays NaN on every target.
  x = hn::IfThenElse(hn::Gt(x, limit), limit, x);
  x = hn::IfThenElse(hn::Lt(x, hn::Neg(limit)), hn::Neg(limit), x);
  const FloatVec shift = hn::Set(d, kRoundShift);
  const FloatVec one = hn::Set(d, 1.0f);
  const FloatVec shifted = hn::Add(x, shift);
  const FloatVec f = hn::Sub(x, hn::Sub(shifted, shift));
  const FloatVec r = hn::Mul(exp2_fraction(d, f), f);
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  const FloatVec scale = hn::BitCast(d, hn::Add(hn::BitCast(di, one), exponent));
  const FloatVec e = hn::MulAdd(scale, r, hn::Sub(scale, one));
  return hn::Div(e, hn::Add(e, hn::Set(d, 2.0f)));
}

// Loads one vector of elements as float32, exactly.
template <class D>
HWY_INLINE hn::Vec<D> load_floats(D d, const float* from) {
  return hn::LoadU(d, from);
}

template <class D>
HWY_INLINE hn::Vec<D> load_floats(D d, const bfloat16* from) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::PromoteTo(du, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(from)));
  return hn::BitCast(d, hn::ShiftLeft<16>(bits));
}

// The value of a float16 whose bits are an int32 in [0, 2^16). Rebias by multiplying with 2^(127 - 15), which
// makes subnormals right as well; infinity and NaN get float32's exponent back. Highway 1.0.3 has no
// conversion that treats all of these alike on all targets.
template <class D>
HWY_INLINE hn::Vec<D> float16_value(D d, hn::Vec<hn::RebindToSigned<D>> bits) {
  const hn::RebindToSigned<D> di;
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(di, 0x8000)));
  const auto magnitude = hn::ShiftLeft<13>(hn::And(bits, hn::Set(di, 0x7fff)));
  const auto rebased = hn::Mul(hn::BitCast(d, magnitude), hn::Set(d, 0x1p112f));
  const auto special = hn::Gt(magnitude, hn::Set(di, 0x0f7fffff));
  const auto exponent = hn::And(hn::VecFromMask(di, special), hn::Set(di, 0x7f800000));
  return hn::BitCast(d, hn::Or(hn::Or(hn::BitCast(di, rebased), exponent), sign));
}

// The same for E4M3, rebiased from 7, whose only special is the NaN of all ones. The bits may have anything
// above the lowest 8.
template <class D>
HWY_INLINE hn::Vec<D> float8_e4m3_value(D d, hn::Vec<hn::RebindToSigned<D>> bits) {
  const hn::RebindToSigned<D> di;
  const auto sign = hn::ShiftLeft<24>(hn::And(bits, hn::Set(di, 0x80)));
  const auto magnitude = hn::And(bits, hn::Set(di, 0x7f));
  const auto rebased = hn::Mul(hn::BitCast(d, hn::ShiftLeft<20>(magnitude)), hn::Set(d, 0x1p120f));
  const auto special = hn::VecFromMask(di, hn::Eq(magnitude, hn::Set(di, 0x7f)));
  const auto nan = hn::And(special, hn::Set(di, 0x7fc00000));
  return hn::BitCast(d, hn::Or(hn::Or(hn::BitCast(di, rebased), nan), sign));
}

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
template <class D>
HWY_INLINE hn::Vec<D> load_floats(D d, const float16* from) {
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from)));
}
#else
template <class D>
HWY_INLINE hn::Vec<D> load_floats(D d, const float16* from) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToSigned<D> di;
  return float16_value(d,
                       hn::PromoteTo(di, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(from))));
}
#endif

template <class D>
HWY_INLINE hn::Vec<D> load_floats(D d, const int8_t* from) {
  const hn::Rebind<int8_t, D> d8;
  const hn::RebindToSigned<D> di;
  return hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, from)));
}

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
// The float16 that is 2^-8 of the E4M3 whose 8 bits are the upper ones of each 16, the others 0; its NaN becomes
// float16's.
template <class D16>
HWY_INLINE hn::Vec<D16> float16_of_e4m3(D16 d, hn::Vec<D16> upper) {
  const hn::RebindToSigned<D16> di;
  const auto shifted = hn::BitCast(d, hn::ShiftRight<1>(hn::BitCast(di, upper)));
  const auto half = hn::And(shifted, hn::Set(d, 0xbf80));
  const auto is_nan = hn::Eq(hn::And(half, hn::Set(d, 0x7fff)), hn::Set(d, 0x3f80));
  return hn::IfThenElse(is_nan, hn::Set(d, 0x7e00), half);
}
inline constexpr float kE4M3Scale = 0x1p8f;

// Bytes as the upper halves of 16 bits, one for each lane of D.
template <class D, class T>
HWY_INLINE hn::Vec<hn::Rebind<uint16_t, D>> load_upper_bytes(D, const T* from) {
  const hn::Rebind<uint8_t, D> d8;
  const hn::Rebind<uint16_t, D> d16;
  return hn::ShiftLeft<8>(
      hn::PromoteTo(d16, hn::LoadU(d8, reinterpret_cast<const uint8_t*>(from))));
}

template <class D>
HWY_INLINE hn::Vec<D> load_floats(D d, const float8_e4m3* from) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<hwy::float16_t, D> half;
  const auto value = float16_of_e4m3(d16, load_upper_bytes(d, from));
  return hn::Mul(hn::PromoteTo(d, hn::BitCast(half, value)), hn::Set(d, kE4M3Scale));
}

// E5M2 is the upper half of a float16.
template <class D>
HWY_INLINE hn::Vec<D> load_floats(D d, const float8_e5m2* from) {
  const hn::Rebind<hwy::float16_t, D> half;
  return hn::PromoteTo(d, hn::BitCast(half, load_upper_bytes(d, from)));
}
#else
template <class D>
HWY_INLINE hn::Vec<D> load_floats(D d, const float8_e4m3* from) {
  const hn::Rebind<uint8_t, D> d8;
  const hn::RebindToSigned<D> di;
  return float8_e4m3_value(
      d, hn::PromoteTo(di, hn::LoadU(d8, reinterpret_cast<const uint8_t*>(from))));
}

// E5M2 is the upper half of a float16.
template <class D>
HWY_INLINE hn::Vec<D> load_floats(D d, const float8_e5m2* from) {
  const hn::Rebind<uint8_t, D> d8;
  const hn::RebindToSigned<D> di;
  const auto bits = hn::PromoteTo(di, hn::LoadU(d8, reinterpret_cast<const uint8_t*>(from)));
  return float16_value(d, hn::ShiftLeft<8>(bits));
}
#endif

// Stores float32 as another dtype, rounded to nearest even like the conversions of float_types.h; the only NaN is
// numeric_limits' quiet one.
template <class D>
HWY_INLINE void store_rounded(D d, hn::Vec<D> v, float* to) {
  hn::StoreU(v, d, to);
}

template <class D>
HWY_INLINE void store_rounded([[maybe_unused]] D d, hn::Vec<D> v, bfloat16* to) {
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const hn::Rebind<uint16_t, D> d16;
  const auto bits = hn::BitCast(du, v);
  const auto lowest_kept = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), lowest_kept);
  const auto upper = hn::BitCast(di, hn::ShiftRight<16>(rounded));
  hn::StoreU(hn::DemoteTo(d16, upper), d16, reinterpret_cast<uint16_t*>(to));
}

template <class D>
HWY_INLINE void store_rounded(D d, hn::Vec<D> v, float16* to) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
  const hn::Rebind<hwy::float16_t, D> d16;
  hn::StoreU(hn::DemoteTo(d16, v), d16, reinterpret_cast<hwy::float16_t*>(to));
#else
  HWY_ALIGN float step[16];
  hn::Store(v, d, step);
  for (size_t i = 0; i < hn::Lanes(d); ++i) to[i] = float16(step[i]);
#endif
}

// How products are added (blocks-inl.h). Operands are vectors of 32-bit units, kElements numbers each.
struct FloatDot {
  static constexpr int kElements = 1;
};
HWY_INLINE FloatVec add_product(FloatDot, FloatVec a, FloatVec b, FloatVec sum) {
  return hn::MulAdd(a, b, sum);
}

#if HWY_TARGET == HWY_AVX3
// Pairs of bfloat16: sum + a1 * b1 + a0 * b0, rounded to float32 after each addition. Its
// add_product is compiled for AVX512-BF16, in blocks-inl.h; what is here is assembler, because the functions
// around it are compiled for AVX-512 alone.
struct PairDot {
  static constexpr int kElements = 2;
  // Unit i is (low[i], high[i]), rounded to nearest even.
  static HWY_INLINE FloatVec pack(FloatVec low, FloatVec high) {
    const FloatTag d;
    const hn::Repartition<uint16_t, FloatTag> d16;
    __m512i halves;  // all of low, then all of high
    __asm__("vcvtne2ps2bf16 %2, %1, %0" : "=v"(halves) : "v"(high.raw), "v"(low.raw));
    alignas(64) static constexpr uint16_t kInterleave[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i order = hn::Load(d16, kInterleave).raw;
    return hn::BitCast(d, hn::Vec<decltype(d16)>{_mm512_permutexvar_epi16(order, halves)});
  }
  // The low halves of the result are low and high, one after the other, rounded alike.
  static HWY_INLINE hn::Vec<hn::Repartition<uint16_t, FloatTag>> round(FloatVec low,
                                                                       FloatVec high) {
    __m512i halves;
    __asm__("vcvtne2ps2bf16 %2, %1, %0" : "=v"(halves) : "v"(high.raw), "v"(low.raw));
    return {halves};
  }
};
#else
using PairDot = void;
#endif

// Element e of each 32-bit unit, as float32.
HWY_INLINE FloatVec unit_floats(float, hn::Vec<hn::RebindToUnsigned<FloatTag>> units, int) {
  return hn::BitCast(FloatTag(), units);
}

HWY_INLINE FloatVec unit_floats(bfloat16, hn::Vec<hn::RebindToUnsigned<FloatTag>> units, int e) {
  const hn::RebindToUnsigned<FloatTag> du;
  return hn::BitCast(FloatTag(),
                     e == 0 ? hn::ShiftLeft<16>(units) : hn::And(units, hn::Set(du, 0xffff0000u)));
}

#if HWY_TARGET == HWY_AVX3
// The first halves of all units, then the second ones, so that one instruction converts half of a vector.
HWY_INLINE FloatVec unit_floats(float16, hn::Vec<hn::RebindToUnsigned<FloatTag>> units, int e) {
  alignas(64) static constexpr uint16_t kApart[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20,
                                                      22, 24, 26, 28, 30, 1,  3,  5,  7,  9,  11,
                                                      13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  const __m512i halves = _mm512_permutexvar_epi16(_mm512_load_si512(kApart), units.raw);
  return FloatVec{_mm512_cvtph_ps(e == 0 ? _mm512_castsi512_si256(halves)
                                         : _mm512_extracti64x4_epi64(halves, 1))};
}
#elif HWY_TARGET == HWY_AVX2
HWY_INLINE FloatVec unit_floats(float16, hn::Vec<hn::RebindToUnsigned<FloatTag>> units, int e) {
  const __m256i apart = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,  //
                                         0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  const __m256i halves = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(units.raw, apart), 0xd8);
  return FloatVec{_mm256_cvtph_ps(e == 0 ? _mm256_castsi256_si128(halves)
                                         : _mm256_extracti128_si256(halves, 1))};
}
#else
HWY_INLINE FloatVec unit_floats(float16, hn::Vec<hn::RebindToUnsigned<FloatTag>> units, int e) {
  const hn::RebindToUnsigned<FloatTag> du;
  const IntTag di;
  const auto bits = e == 0 ? hn::And(units, hn::Set(du, 0xffffu)) : hn::ShiftRight<16>(units);
  return float16_value(FloatTag(), hn::BitCast(di, bits));
}
#endif

// Byte e in the highest 8 bits of each unit.
HWY_INLINE hn::Vec<hn::RebindToUnsigned<FloatTag>> byte_on_top(
    hn::Vec<hn::RebindToUnsigned<FloatTag>> units, int e) {
  switch (e) {
    case 0:
      return hn::ShiftLeft<24>(units);
    case 1:
      return hn::ShiftLeft<16>(units);
    case 2:
      return hn::ShiftLeft<8>(units);
    default:
      return units;
  }
}

#if HWY_TARGET == HWY_AVX3
// The byte into the mantissa of a power of two whose last place there is 1, with the sign bit flipped, which
// makes it the byte + 128; less that power and 128. Two operations a byte and few shifts, which the
// transposition of units needs.
HWY_INLINE FloatVec unit_floats(int8_t, hn::Vec<hn::RebindToUnsigned<FloatTag>> units, int e) {
  const FloatTag d;
  const auto half = e < 2 ? units : hn::ShiftRight<16>(units);
  const __m512i mask = _mm512_set1_epi32(e % 2 == 0 ? 0xff : 0xff00);
  const __m512i power = _mm512_set1_epi32(e % 2 == 0 ? 0x4b000080 : 0x47008000);
  constexpr int kXorAnd = 0x78;  // power ^ (half & mask)
  const __m512i bits = _mm512_ternarylogic_epi32(power, half.raw, mask, kXorAnd);
  return hn::Sub(FloatVec{_mm512_castsi512_ps(bits)}, FloatVec{_mm512_castsi512_ps(power)});
}
#else
HWY_INLINE FloatVec unit_floats(int8_t, hn::Vec<hn::RebindToUnsigned<FloatTag>> units, int e) {
  const auto top = hn::BitCast(IntTag(), byte_on_top(units, e));
  return hn::ConvertTo(FloatTag(), hn::ShiftRight<24>(top));
}
#endif

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
// Bytes e % 2 and e % 2 + 2 of each unit, in the upper 8 bits of its halves.
HWY_INLINE hn::Vec<hn::RebindToUnsigned<FloatTag>> bytes_on_halves(
    hn::Vec<hn::RebindToUnsigned<FloatTag>> units, int e) {
  const hn::RebindToUnsigned<FloatTag> du;
  return hn::And(e % 2 == 0 ? hn::ShiftLeft<8>(units) : units, hn::Set(du, 0xff00ff00u));
}

HWY_INLINE FloatVec unit_floats(float8_e4m3, hn::Vec<hn::RebindToUnsigned<FloatTag>> units, int e) {
  const hn::RebindToUnsigned<FloatTag> du;
  const hn::Repartition<uint16_t, FloatTag> d16;
  const auto halves = float16_of_e4m3(d16, hn::BitCast(d16, bytes_on_halves(units, e)));
  return hn::Mul(unit_floats(float16(), hn::BitCast(du, halves), e / 2),
                 hn::Set(FloatTag(), kE4M3Scale));
}

HWY_INLINE FloatVec unit_floats(float8_e5m2, hn::Vec<hn::RebindToUnsigned<FloatTag>> units, int e) {
  return unit_floats(float16(), bytes_on_halves(units, e), e / 2);
}
#else
HWY_INLINE FloatVec unit_floats(float8_e4m3, hn::Vec<hn::RebindToUnsigned<FloatTag>> units, int e) {
  const auto byte = hn::BitCast(IntTag(), hn::ShiftRight<24>(byte_on_top(units, e)));
  return float8_e4m3_value(FloatTag(), byte);
}

HWY_INLINE FloatVec unit_floats(float8_e5m2, hn::Vec<hn::RebindToUnsigned<FloatTag>> units, int e) {
  const hn::RebindToUnsigned<FloatTag> du;
  const auto half = hn::And(hn::ShiftRight<16>(byte_on_top(units, e)), hn::Set(du, 0xff00u));
  return float16_value(FloatTag(), hn::BitCast(IntTag(), half));
}
#endif

}  // namespace HWY_NAMESPACE
}  // namespace pagefill::cpu
HWY_AFTER_NAMESPACE();

#endif  // include guard
