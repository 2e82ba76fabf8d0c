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
namespace pagefill::cpu {

HWY_EXPORT(kernel);
HWY_EXPORT(pair_kernel);

namespace {

struct Entry {
  TargetInfo info;
  Kernel kernel;
};

bool has_pair_instructions() {
#if HWY_ARCH_X86
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

Kernel kernel_of(const TargetRow& row) {
  hwy::ChosenTarget chosen;
  chosen.Update(row.bit);
  constexpr size_t kTableSize = std::size(HWY_DISPATCH_TABLE(kernel));
  // Highway's table has a single entry where a single target is compiled.
  const size_t index = kTableSize == 1 ? 0 : chosen.GetIndex();
  return row.pairs ? HWY_DISPATCH_TABLE(pair_kernel)[index]() : HWY_DISPATCH_TABLE(kernel)[index]();
}

const std::vector<Entry>& entries() {
  static const std::vector<Entry> all = [] {
    std::vector<Entry> found;
    for (const TargetRow& row : kTargets) {
      if ((row.bit & HWY_TARGETS) == 0) continue;
      const bool supported = (row.bit & (hwy::SupportedTargets() | HWY_EMU128 | HWY_SCALAR)) != 0;
      const bool available = supported && (!row.pairs || has_pair_instructions());
      found.push_back({{row.name, row.description, available, row.pairs}, {}});
      // Asking a kernel for its lanes runs its instructions.
      if (available) found.back().kernel = kernel_of(row);
    }
    return found;
  }();
  return all;
}

}  // namespace

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
