#include "kv_cache/rows.h"

#include <algorithm>
#include <cstring>

#include "kv_cache/quantise.h"

namespace pagefill {
namespace {

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

template <typename From, typename To>
float choose_scale(const void* source, int64_t num_elements) {
  const From* from = static_cast<const From*>(source);
  int32_t bits = 0;
  for (int64_t d = 0; d < num_elements; ++d) {
    bits = std::max(bits, magnitude_bits(static_cast<float>(from[d])));
  }
  return scale_of_largest<To>(bits);
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
