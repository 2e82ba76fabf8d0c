// What a device can do at best.
#pragma once

#include "pagefill/tensor.h"

namespace pagefill::cli {

// Operations a second of mma.sync m16n8k16 of bfloat16 or float16, or of float32 multiply-adds.
double device_peak_flops(DType dtype);
// Bytes read and written a second by a copy.
double device_peak_bandwidth();

}  // namespace pagefill::cli
