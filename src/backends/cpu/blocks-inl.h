// The loops that multiply, for each kind of product. Compiled once for each target.
#if defined(PAGEFILL_CPU_BLOCKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEFILL_CPU_BLOCKS_INL_H_
#undef PAGEFILL_CPU_BLOCKS_INL_H_
#else
#define PAGEFILL_CPU_BLOCKS_INL_H_
#endif

#include <hwy/highway.h>

#include "backends/cpu/config.h"
#include "backends/cpu/math-inl.h"
#include "backends/cpu/tile-inl.h"
#include "backends/cpu/units-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pagefill::cpu {
namespace HWY_NAMESPACE {

template <class Dot>
struct Blocks;

// GCC 12 calls it an error where a sanitizer has rewritten the loop of a vector of one lane.
#undef PAGEFILL_UNROLL_TWICE
#if HWY_TARGET == HWY_SCALAR
#define PAGEFILL_UNROLL_TWICE
#else
#define PAGEFILL_UNROLL_TWICE _Pragma("GCC unroll 2")
#endif

#define PAGEFILL_DOT FloatDot
#define PAGEFILL_DOT_ATTR HWY_ATTR
#include "backends/cpu/blocks_body-inl.h"
#undef PAGEFILL_DOT
#undef PAGEFILL_DOT_ATTR

}  // namespace HWY_NAMESPACE
}  // namespace pagefill::cpu
HWY_AFTER_NAMESPACE();

#if HWY_TARGET == HWY_AVX3
#define PAGEFILL_PAIR_TARGET HWY_TARGET_STR_AVX3 ",avx512bf16"
HWY_PUSH_ATTRIBUTES(PAGEFILL_PAIR_TARGET)
namespace pagefill::cpu {
namespace HWY_NAMESPACE {

HWY_INLINE FloatVec add_product(PairDot, FloatVec a, FloatVec b, FloatVec sum) {
  return FloatVec{_mm512_dpbf16_ps(sum.raw, reinterpret_cast<__m512bh>(a.raw),
                                   reinterpret_cast<__m512bh>(b.raw))};
}

#define PAGEFILL_DOT PairDot
#define PAGEFILL_DOT_ATTR __attribute__((target(PAGEFILL_PAIR_TARGET)))
#include "backends/cpu/blocks_body-inl.h"
#undef PAGEFILL_DOT
#undef PAGEFILL_DOT_ATTR

}  // namespace HWY_NAMESPACE
}  // namespace pagefill::cpu
HWY_POP_ATTRIBUTES
#undef PAGEFILL_PAIR_TARGET
#endif

#endif  // include guard
