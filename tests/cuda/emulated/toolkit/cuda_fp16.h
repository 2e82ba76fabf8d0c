#pragma once

#include "pagefill/float_types.h"

struct __half_raw {
  unsigned short x;
};
struct __half {
  uint16_t bits;
  __half() = default;
  explicit __half(uint16_t of_bits) : bits(of_bits) {}
  explicit __half(__half_raw raw) : bits(raw.x) {}
};
struct __half2_raw {
  unsigned short x, y;
};
struct __half2 {
  __half x, y;
  __half2(__half low, __half high) : x(low), y(high) {}
  explicit __half2(__half2_raw raw) : x{raw.x}, y{raw.y} {}
};

// NaN as the device makes it: one encoding, which is none of the host's.
inline __half __float2half_rn(float x) {
  return __half(x == x ? pagefill::float16(x).bits : uint16_t{0x7fff});
}
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) { return __half(bits); }
inline float __half2float(__half x) {
  return static_cast<float>(pagefill::float16::from_bits(x.bits));
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
inline float2 __half22float2(__half2 x) { return {__half2float(x.x), __half2float(x.y)}; }
inline __half2 __hsub2(__half2 a, __half2 b) {
  return __floats2half2_rn(__half2float(a.x) - __half2float(b.x),
                           __half2float(a.y) - __half2float(b.y));
}
