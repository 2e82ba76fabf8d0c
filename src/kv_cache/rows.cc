#include "kv_cache/rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace pagefill {
namespace {

// Symmetric: -128 is never written, so that -x is stored as the negative of x.
constexpr double kLargestInt8 = 127;

// Two floats' quotient in double is a tie only where the real quotient is one, so it is rounded once.
template <typename To>
To quantised(double quotient) {
  if constexpr (std::is_same_v<To, int8_t>) {
    const double number = quotient == quotient ? quotient : 0;
    const double clamped = std::min(std::max(number, -kLargestInt8), kLargestInt8);
    // The last bit of 1.5 * 2^52 weighs 1: adding it rounds to nearest even, and leaves the integer in the
    // lowest bits, without a branch that would keep the loop from being vectorised.
    return static_cast<int8_t>(std::bit_cast<uint64_t>(clamped + 0x1.8p52));
  } else {
    return To(quotient);
  }
}

template <typename From, typename To>
void write_row(const void* source, void* destination, int64_t num_elements,
               [[maybe_unused]] float scale) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(destination, source, static_cast<size_t>(num_elements) * sizeof(To));
  } else {
    const From* from = static_cast<const From*>(source);
    To* to = static_cast<To*>(destination);
    for (int64_t d = 0; d < num_elements; ++d) {
      const auto x = static_cast<float>(from[d]);
      if constexpr (is_quantised(DTypeOf<To>::value)) {
        to[d] = quantised<To>(static_cast<double>(x) / static_cast<double>(scale));
      } else {
        to[d] = To(x);
      }
    }
  }
}

template <typename To>
constexpr float kLargest = To::kLargest;
template <>
constexpr float kLargest<int8_t> = static_cast<float>(kLargestInt8);

template <typename From, typename To>
float choose_scale(const void* source, int64_t num_elements) {
  const From* from = static_cast<const From*>(source);
  // Magnitudes are ordered as their bits are, infinity and NaN last; integers' maximum vectorises.
  int32_t bits = 0;
  for (int64_t d = 0; d < num_elements; ++d) {
    bits = std::max(bits, std::bit_cast<int32_t>(static_cast<float>(from[d])) & 0x7fffffff);
  }
  const auto largest = std::bit_cast<float>(bits);
  if (!std::isfinite(largest)) return std::numeric_limits<float>::quiet_NaN();
  if (largest == 0) return 1;
  // A subnormal scale has few bits left, or none: the largest element would saturate.
  return std::max(largest / kLargest<To>, std::numeric_limits<float>::min());
}

struct RowKernels {
  DType tokens, cache;
  WriteRow write;
  ChooseScale choose;  // null: the cache is not quantised
};

template <typename From, typename To>
constexpr RowKernels row_of() {
  RowKernels row{DTypeOf<From>::value, DTypeOf<To>::value, write_row<From, To>, nullptr};
  if constexpr (is_quantised(DTypeOf<To>::value)) row.choose = choose_scale<From, To>;
  return row;
}

constexpr RowKernels kRows[] = {
    row_of<float, float>(),     row_of<float, bfloat16>(),       row_of<float, float16>(),
    row_of<float, int8_t>(),    row_of<float, float8_e4m3>(),    row_of<float, float8_e5m2>(),
    row_of<bfloat16, float>(),  row_of<bfloat16, bfloat16>(),    row_of<bfloat16, float16>(),
    row_of<bfloat16, int8_t>(), row_of<bfloat16, float8_e4m3>(), row_of<bfloat16, float8_e5m2>(),
    row_of<float16, float>(),   row_of<float16, bfloat16>(),     row_of<float16, float16>(),
    row_of<float16, int8_t>(),  row_of<float16, float8_e4m3>(),  row_of<float16, float8_e5m2>(),
};

const RowKernels& find(DType tokens, DType cache) {
  return *std::find_if(std::begin(kRows), std::end(kRows), [&](const RowKernels& row) {
    return row.tokens == tokens && row.cache == cache;
  });
}

}  // namespace

WriteRow row_writer(DType tokens, DType cache) { return find(tokens, cache).write; }
ChooseScale scale_chooser(DType tokens, DType cache) { return find(tokens, cache).choose; }

}  // namespace pagefill
