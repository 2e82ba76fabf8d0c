// Rows of new keys and values in the dtype of their cache.
#pragma once

#include <cstdint>

#include "pagefill/tensor.h"

namespace pagefill {

// Writes `num_elements` elements of `source`, rounded to nearest even; where the dtypes agree their bits.
// In a quantised dtype what is written is element / scale, saturated.
using WriteRow = void (*)(const void* source, void* destination, int64_t num_elements, float scale);
WriteRow row_writer(DType tokens, DType cache);

// The scale with which a quantised dtype holds the row best: its largest magnitude / the dtype's largest
// number. 1 for a row of zeros; NaN for a row with a NaN or an infinity, so that it reads as NaN.
using ChooseScale = float (*)(const void* source, int64_t num_elements);
ChooseScale scale_chooser(DType tokens, DType cache);

}  // namespace pagefill
