// What cuTensorMapEncodeTiled makes of a tensor, and the boxes that the engine brings of it.
#pragma once

#include <cstdint>

#include "machine/memory.h"

namespace emulated {

// Copies a box into shared memory and says how many bytes it has.
uint32_t bring_box(Block& block, const Box& box);

}  // namespace emulated
