// Loops that do nothing but what is measured: float32 multiply-adds that stay in registers, and reads of
// memory. Compiled once per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace pagefill::cli {

// Multiply-adds on chains that do not depend on each other. Returns the floating point operations done.
using MultiplyAddLoop = double (*)(int64_t steps);

// Reads `count` floats, a multiple of kReadBlock, in as many streams at once as the loop's shape says.
using ReadLoop = void (*)(const float* data, size_t count);
inline constexpr size_t kReadBlock = 4096;

struct PeakKernels {
  std::string_view target;  // as Context::cpu_target names it
  int64_t highway_target;
  std::span<const MultiplyAddLoop> multiply_add_loops;
  std::span<const ReadLoop> read_loops;
};

// The loops of an instruction set, or of the best one of this machine where the backend names none. Null
// where there are none for it.
const PeakKernels* find_peak_kernels(std::string_view target);

}  // namespace pagefill::cli
