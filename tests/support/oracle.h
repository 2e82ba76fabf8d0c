// The operator in float64, written from the formula alone.
#pragma once

#include <cstdint>
#include <vector>

#include "support/problem.h"

namespace pagefill::testing {

// Rows of all sequences, one after another.
struct Expected {
  std::vector<double> output;         // [total_rows, num_q_heads, v_head_dim]
  std::vector<double> lse;            // [total_rows, num_q_heads]
  std::vector<double> largest_value;  // [total_rows, num_q_heads]: max |v| over the row's keys
  // [total_rows, num_q_heads]: max over the row's keys of |s| + softmax_scale * |q * k|, the score
  // before the cap and the length of the random walk that its dot product adds up.
  std::vector<double> score_size;
};

Expected oracle(const Problem& problem);

}  // namespace pagefill::testing
