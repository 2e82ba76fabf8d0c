// Compiles forward-inl.h once for each instruction set, and lists the results.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/forward.cc"

// AVX3_DL brings nothing that the tiles use; SSSE3 is a row of its own only on processors from before 2008.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL)

#include <hwy/foreach_target.h>  // must come before what it compiles again and again

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include <hwy/highway.h>

#include "backends/cpu/forward-inl.h"
#include "backends/cpu/targets.h"

#if HWY_ONCE
#if HWY_ARCH_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pagefill::cpu {

HWY_EXPORT(kernel);
HWY_EXPORT(pair_kernel);
HWY_EXPORT(amx_kernel);

namespace {

struct Entry {
  TargetInfo info;
  Kernel kernel;
};

#if HWY_ARCH_X86
// The processor has AMX for bfloat16, and Linux lets this process use its registers.
bool has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & (kAmxBf16 | kAmxTile)) != (kAmxBf16 | kAmxTile)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_instructions(Pairs pairs) {
  if (pairs == Pairs::kAmx) return has_amx() && __builtin_cpu_supports("avx512bf16");
  return pairs == Pairs::kNone || __builtin_cpu_supports("avx512bf16");
}

// On Sapphire Rapids AVX512-BF16 does less than float32: 933 and 1337 GFLOP/s on 16 threads at 512 queries @
// 4096. On Zen 4 it does 160 % of the float32 peak, and float32 88 %.
bool pairs_are_slow() { return __builtin_cpu_is("intel"); }

// Zen 5 (family 26) reads pieces of 2, 4 and 8 KiB in random order, 512 lines ahead, at 15.6, 15.7 and 15.9 GB/s
// with prefetcht0, at 8.7, 13.5 and 14.3 with prefetcht1. On Zen 4 a decode row that fetched into the first-level
// cache, in bursts, read half as fast as into the second.
bool prefetches_to_second_level_are_slow() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__builtin_cpu_is("amd") || __get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return false;
  return (eax >> 8 & 0xf) + (eax >> 20 & 0xff) >= 26;
}
#else
bool has_instructions(Pairs pairs) { return pairs == Pairs::kNone; }
bool pairs_are_slow() { return false; }
bool prefetches_to_second_level_are_slow() { return false; }
#endif

Kernel kernel_of(const TargetRow& row) {
  hwy::ChosenTarget chosen;
  chosen.Update(row.bit);
  constexpr size_t kTableSize = std::size(HWY_DISPATCH_TABLE(kernel));
  // Highway's table has a single entry where a single target is compiled.
  const size_t index = kTableSize == 1 ? 0 : chosen.GetIndex();
  switch (row.pairs) {
    case Pairs::kAmx:
      return HWY_DISPATCH_TABLE(amx_kernel)[index]();
    case Pairs::kAvx512Bf16:
      return HWY_DISPATCH_TABLE(pair_kernel)[index]();
    default:
      return HWY_DISPATCH_TABLE(kernel)[index]();
  }
}

const std::vector<Entry>& entries() {
  static const std::vector<Entry> all = [] {
    std::vector<Entry> found;
    for (const TargetRow& row : kTargets) {
      if ((row.bit & HWY_TARGETS) == 0) continue;
      const bool supported = (row.bit & (hwy::SupportedTargets() | HWY_EMU128 | HWY_SCALAR)) != 0;
      const bool available = supported && has_instructions(row.pairs);
      const bool has_pairs = row.pairs != Pairs::kNone;
      found.push_back({{row.name, row.description, available, has_pairs}, {}});
      // Asking a kernel for its lanes runs its instructions.
      if (available) found.back().kernel = kernel_of(row);
    }
    const auto slow = std::find_if(found.begin(), found.end(), [](const Entry& entry) {
      return entry.info.name == "avx512_bf16" && pairs_are_slow();
    });
    if (slow != found.end()) std::iter_swap(slow, slow + 1);  // behind avx512
    return found;
  }();
  return all;
}

}  // namespace

bool fetches_near() {
  static const bool near = prefetches_to_second_level_are_slow();
  return near;
}

std::span<const TargetInfo> kernel_targets() {
  static const std::vector<TargetInfo> infos = [] {
    std::vector<TargetInfo> result;
    for (const Entry& entry : entries()) result.push_back(entry.info);
    return result;
  }();
  return infos;
}

const Kernel& find_kernel(std::string_view target) {
  return std::find_if(entries().begin(), entries().end(),
                      [&](const Entry& entry) { return entry.info.name == target; })
      ->kernel;
}

}  // namespace pagefill::cpu
#endif  // HWY_ONCE
