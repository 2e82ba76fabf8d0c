// bfloat16, float16 and two floats of 8 bits as storage types. Conversions to float are exact; those to
// a storage type round to nearest, ties to even, and NaN stays NaN. What is too large becomes infinity in
// bfloat16 and float16, and the largest finite number in the floats of 8 bits.
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

namespace float8_detail {

// 1 sign, 7 - kMantissaBits exponent and kMantissaBits mantissa bits; the largest finite number is
// kLargest, with the bits kLargestBits.
template <int kMantissaBits, uint32_t kLargestBits, int kLargest>
struct Format {
  static constexpr int kBias = (1 << (6 - kMantissaBits)) - 1;

  // The bits of a number that is no NaN. From double, so that a quotient of two floats, which double
  // tells from a tie, is rounded once.
  static constexpr uint8_t bits_of(double value) {
    constexpr int kShift = 52 - kMantissaBits;  // double has 52 mantissa bits
    constexpr double kSmallestNormal = std::bit_cast<double>(uint64_t{1023 + 1 - kBias} << 52);
    // Its last bit weighs what the last bit of a subnormal does: adding it aligns and rounds.
    constexpr uint64_t kAligned = uint64_t{1023 + 1 - kBias + kShift} << 52;
    const uint64_t u = std::bit_cast<uint64_t>(value);
    const auto sign = static_cast<uint32_t>(u >> 63) << 7;
    const uint64_t magnitude = u & ~(uint64_t{1} << 63);
    const double absolute = std::bit_cast<double>(magnitude);
    if (absolute >= kLargest) return static_cast<uint8_t>(sign | kLargestBits);
    if (absolute < kSmallestNormal) {
      const double aligned = absolute + std::bit_cast<double>(kAligned);
      return static_cast<uint8_t>(sign | (std::bit_cast<uint64_t>(aligned) - kAligned));
    }
    const uint64_t rebased = magnitude - (uint64_t{1023 - kBias} << 52);
    const uint64_t half = (uint64_t{1} << (kShift - 1)) - 1 + ((rebased >> kShift) & 1u);
    return static_cast<uint8_t>(sign | ((rebased + half) >> kShift));
  }

  // The value of the bits, which are no NaN and no infinity.
  static constexpr float value_of(uint8_t bits) {
    const uint32_t sign = (bits & 0x80u) << 24;
    const uint32_t magnitude = bits & 0x7fu;
    if (magnitude >> kMantissaBits != 0) {
      constexpr uint32_t kRebias = uint32_t{127 - kBias} << 23;
      return std::bit_cast<float>(sign | ((magnitude << (23 - kMantissaBits)) + kRebias));
    }
    constexpr float kLastBit =
        std::bit_cast<float>(uint32_t{127 + 1 - kBias - kMantissaBits} << 23);
    const float value = static_cast<float>(magnitude) * kLastBit;  // subnormal, exact
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
  }
};

}  // namespace float8_detail

// OCP E4M3, the variant without infinities: 1 sign, 4 exponent and 3 mantissa bits, up to 448. All ones
// are NaN. What is beyond 448, infinities included, becomes 448 with its sign.
struct float8_e4m3 {
  static constexpr float kLargest = 448;
  uint8_t bits = 0;

  constexpr float8_e4m3() = default;
  constexpr explicit float8_e4m3(double value)
      : bits(value != value
                 ? static_cast<uint8_t>(std::bit_cast<uint64_t>(value) >> 63 << 7 | 0x7fu)
                 : Format::bits_of(value)) {}
  constexpr explicit operator float() const {
    if ((bits & 0x7fu) != 0x7fu) return Format::value_of(bits);
    return std::bit_cast<float>((bits & 0x80u) << 24 | 0x7fc00000u);
  }
  static constexpr float8_e4m3 from_bits(uint8_t bits) {
    float8_e4m3 value;
    value.bits = bits;
    return value;
  }

 private:
  using Format = float8_detail::Format<3, 0x7e, 448>;
};

// OCP E5M2: 1 sign, 5 exponent and 2 mantissa bits, up to 57344. Finite numbers beyond it become 57344 with
// their sign; infinities stay.
struct float8_e5m2 {
  static constexpr float kLargest = 57344;
  uint8_t bits = 0;

  constexpr float8_e5m2() = default;
  constexpr explicit float8_e5m2(double value) {
    const uint64_t u = std::bit_cast<uint64_t>(value);
    const auto sign = static_cast<uint32_t>(u >> 63) << 7;
    const uint64_t magnitude = u & ~(uint64_t{1} << 63), infinity = uint64_t{0x7ff} << 52;
    bits = magnitude > infinity    ? static_cast<uint8_t>(sign | 0x7eu)  // NaN
           : magnitude == infinity ? static_cast<uint8_t>(sign | 0x7cu)
                                   : Format::bits_of(value);
  }
  constexpr explicit operator float() const {
    const uint32_t sign = (bits & 0x80u) << 24, magnitude = bits & 0x7fu;
    if (magnitude < 0x7cu) return Format::value_of(bits);
    return std::bit_cast<float>(sign | (magnitude == 0x7cu ? 0x7f800000u : 0x7fc00000u));
  }
  static constexpr float8_e5m2 from_bits(uint8_t bits) {
    float8_e5m2 value;
    value.bits = bits;
    return value;
  }

 private:
  using Format = float8_detail::Format<2, 0x7b, 57344>;
};

}  // namespace pagefill
