// bfloat16 and float16 as storage types with conversions to and from float. Conversions from float
// round to nearest, ties to even; NaN stays NaN; what is too large becomes infinity.
#pragma once

#include <bit>
#include <cstdint>

namespace pagefill {

// The upper half of a float32: 1 sign, 8 exponent and 7 mantissa bits.
struct bfloat16 {
  uint16_t bits = 0;

  constexpr bfloat16() = default;
  constexpr explicit bfloat16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const bool is_nan = (u & 0x7fffffffu) > 0x7f800000u;
    // 0x7fff plus the lowest kept bit rounds ties to even; a NaN keeps its sign and gets quiet.
    bits = is_nan ? static_cast<uint16_t>((u >> 16) | 0x40u)
                  : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  constexpr explicit operator float() const {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
  static constexpr bfloat16 from_bits(uint16_t bits) {
    bfloat16 value;
    value.bits = bits;
    return value;
  }
};

// IEEE 754 binary16: 1 sign, 5 exponent and 10 mantissa bits.
struct float16 {
  uint16_t bits = 0;

  constexpr float16() = default;
  constexpr explicit float16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t sign = (u >> 16) & 0x8000u;
    const uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {  // NaN: keep the upper payload bits, make it quiet
      bits = static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    } else if (magnitude >= 0x477ff000u) {  // 65520, halfway to 2^16, and above: infinity
      bits = static_cast<uint16_t>(sign | 0x7c00u);
    } else if (magnitude >= 0x38800000u) {  // normal: 2^-14 and above; rebias 127 -> 15
      const uint32_t rebased = magnitude - 0x38000000u;
      bits = static_cast<uint16_t>(sign | ((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13));
    } else {  // subnormal: adding 0.5 aligns the value so that its last bit weighs 2^-24
      const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
      bits = static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000u));
    }
  }
  constexpr explicit operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) {  // infinity and NaN
      return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    }
    if (magnitude >= 0x400u) return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
    const float value = static_cast<float>(magnitude) * 0x1p-24f;  // subnormal, exact
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
  }
  static constexpr float16 from_bits(uint16_t bits) {
    float16 value;
    value.bits = bits;
    return value;
  }
};

}  // namespace pagefill
