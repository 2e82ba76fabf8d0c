// In place of src/backends/cuda/ptx/barrier.h.
#pragma once

#include "machine/device.h"

namespace pagefill::cuda::ptx {

using emulated::arrive;
using emulated::arrive_expecting;
using emulated::elect;
using emulated::fence_barrier_init;
using emulated::fence_proxy;
using emulated::has_completed;
using emulated::init_barrier;
using emulated::named_arrive;
using emulated::named_or;
using emulated::named_wait;
using emulated::wait;

inline void keep_branch() {}

template <int kRegisters>
void take_registers() {
  emulated::set_registers(kRegisters, true);
}
template <int kRegisters>
void give_registers() {
  emulated::set_registers(kRegisters, false);
}

}  // namespace pagefill::cuda::ptx
