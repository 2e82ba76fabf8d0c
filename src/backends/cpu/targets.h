// The instruction sets of the CPU backend: one row each.
#pragma once

#include <hwy/detect_targets.h>

#include <cstdint>
#include <iterator>

namespace pagefill::cpu {

// What a target adds to Highway's: instructions for pairs of bfloat16, which Highway 1.0.3 does not know.
enum class Pairs { kNone, kAvx512Bf16, kAmx };

struct TargetRow {
  int64_t bit;       // Highway's
  const char* name;  // as PAGEFILL_CPU_TARGET takes it
  const char* description;
  Pairs pairs = Pairs::kNone;
};

// Best first.
inline constexpr TargetRow kTargets[] = {
#if HWY_ARCH_X86
    {HWY_AVX3, "amx_bf16", "AVX-512, and AMX where query and cache are bfloat16", Pairs::kAmx},
    {HWY_AVX3, "avx512_bf16", "AVX-512, and AVX512-BF16 where query and cache are bfloat16",
     Pairs::kAvx512Bf16},
    {HWY_AVX3, "avx512", "AVX-512 F, BW, DQ, VL: 16 lanes"},
    {HWY_AVX2, "avx2", "AVX2 with FMA: 8 lanes"},
    {HWY_SSE4, "sse4", "SSE4: 4 lanes, multiply and add apart"},
#elif HWY_ARCH_ARM
    {HWY_SVE2_128, "sve2_128", "SVE2 of 128 bits: 4 lanes"},
    {HWY_SVE_256, "sve_256", "SVE of 256 bits: 8 lanes"},
    {HWY_SVE2, "sve2", "SVE2: up to 16 lanes"},
    {HWY_SVE, "sve", "SVE: up to 16 lanes"},
    {HWY_NEON, "neon", "NEON: 4 lanes"},
#endif
    // Whichever of the two Highway has for this compiler.
    {HWY_EMU128, "portable", "plain C++: 4 lanes"},
    {HWY_SCALAR, "portable", "plain C++: 1 lane"},
};

// The name of Highway's target itself.
constexpr const char* target_name(int64_t bit) {
  for (const TargetRow& row : kTargets) {
    if (row.bit == bit && row.pairs == Pairs::kNone) return row.name;
  }
  return "unknown";
}

}  // namespace pagefill::cpu
