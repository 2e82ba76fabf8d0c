// Whether two tensors share memory, however they are interleaved.
#pragma once

#include "pagefill/tensor.h"

namespace pagefill {

// Whether an element of `a` shares a byte with one of `b`. Tensors that lie interleaved in one buffer are
// told apart as far as they step alike, outermost step first; what remains below is taken as without gaps.
// Both have checked shapes and strides.
bool share_memory(const TensorView& a, const TensorView& b);

}  // namespace pagefill
