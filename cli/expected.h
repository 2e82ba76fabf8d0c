// The operator in float64, written from the formula and from nothing else: what `verify` holds results
// against where a case file brings no expectation of its own.
#pragma once

#include "batch.h"
#include "tensor.h"

namespace pagefill::cli {

struct Expected {
  Tensor output;  // float64 [total_tokens, num_q_heads, v_head_dim]
  Tensor lse;     // float64 [total_tokens, num_q_heads]
  // float64 [total_tokens, num_q_heads]: the row's largest |score| + softmax_scale * |q * k|, the score before
  // the cap and the length of the random walk that its dot product adds up.
  Tensor score_size;
};

// The library has accepted the batch.
Expected expected_in_float64(const Batch& batch);

// The largest finite |value| among the keys that the rows of sequence s attend to: what its errors are
// measured by.
double largest_value(const Batch& batch, int64_t s);

}  // namespace pagefill::cli
