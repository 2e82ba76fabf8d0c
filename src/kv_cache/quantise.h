// The numbers of a quantised cache; constexpr, for the CPU and for device code.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "pagefill/float_types.h"

namespace pagefill {

// Symmetric: -128 is never written, so that -x is stored as the negative of x.
inline constexpr double kLargestInt8 = 127;

template <typename To>
inline constexpr float kLargestOf = To::kLargest;
template <>
inline constexpr float kLargestOf<int8_t> = static_cast<float>(kLargestInt8);

// Two floats' quotient in double is a tie only where the real quotient is one, so it is rounded once.
template <typename To>
constexpr To quantised(double quotient) {
  if constexpr (std::is_same_v<To, int8_t>) {
    const double number = quotient == quotient ? quotient : 0;
    // Not std::min, which takes references: device code has no address of a constant of the host.
    const double above = number > -kLargestInt8 ? number : -kLargestInt8;
    const double clamped = above < kLargestInt8 ? above : kLargestInt8;
    // The last bit of 1.5 * 2^52 weighs 1: adding it rounds to nearest even, and leaves the integer in the
    // lowest bits, without a branch that would keep the loop from being vectorised.
    return static_cast<int8_t>(std::bit_cast<uint64_t>(clamped + 0x1.8p52));
  } else {
    return To(quotient);
  }
}

// Magnitudes are ordered as these bits are, infinity and NaN last; integers' maximum vectorises.
constexpr int32_t magnitude_bits(float x) { return std::bit_cast<int32_t>(x) & 0x7fffffff; }

// The scale with which a row is held best, from the largest of its magnitude_bits.
template <typename To>
constexpr float scale_of_largest(int32_t bits) {
  constexpr int32_t kInfinityBits = 0x7f800000;
  if (bits >= kInfinityBits) return std::numeric_limits<float>::quiet_NaN();
  if (bits == 0) return 1;
  // A subnormal scale has few bits left, or none: the largest element would saturate.
  const float scale = std::bit_cast<float>(bits) / kLargestOf<To>;
  constexpr float kSmallestNormal = std::numeric_limits<float>::min();
  return scale > kSmallestNormal ? scale : kSmallestNormal;
}

}  // namespace pagefill
