// In place of src/backends/cuda/ptx/wgmma.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "backends/cuda/ptx/matrix_descriptor.h"
#include "machine/device.h"

namespace pagefill::cuda::ptx {

using emulated::commit_products;
using emulated::fence_products;

template <int kPending>
void wait_for_products() {
  emulated::wait_for_products(kPending);
}

// The machine reads and writes registers where they are; the host's compiler knows of it.
template <int kCols>
void pin(float (&)[kCols][4]) {}

template <typename T, int kColumns>
struct Products {
  static constexpr emulated::Element kElement =
      std::is_same_v<T, __nv_bfloat16> ? emulated::Element::kBFloat16 : emulated::Element::kFloat16;
  static void add_scores(float (&d)[kColumns / 8][4], uint64_t a, uint64_t b, int keeps) {
    emulated::multiply_shared(kElement, kColumns, &d[0][0], a, b, keeps != 0);
  }
  static void add_values(float (&d)[kColumns / 8][4], const uint32_t (&a)[4], uint64_t b) {
    emulated::multiply_registers(kElement, kColumns, &d[0][0], a, b);
  }
};

}  // namespace pagefill::cuda::ptx
