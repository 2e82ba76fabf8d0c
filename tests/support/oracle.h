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
};

Expected oracle(const Problem& problem);

}  // namespace pagefill::testing
