// NVIDIA GPUs, on memory of the device.
#pragma once

#include "backend.h"

namespace pagefill {

const Backend* cuda_backend();

}  // namespace pagefill
