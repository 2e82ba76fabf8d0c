// Calls that must all give the same bits.
#pragma once

#include <vector>

#include "support/run.h"

namespace pagefill::testing {

// One way to make the calls of a problem.
struct Variation {
  Layout layout;
  int threads = 1;
  Cut cut;
};

inline constexpr int64_t kPageSizes[] = {1, 3, 16, 64, 100, 528, 1056};
inline constexpr int64_t kChunkSizes[] = {1, 5, 8, 24, 64, 0};  // 0: whole
inline constexpr int kThreads[] = {1, 2, 3};

// Everything at once: a few ways that differ from the plain one in all respects. Where masked keys
// count, a row takes in the chunk's later tokens: how the rows are cut is part of the data, and
// stays as it is.
std::vector<Variation> mixed_variations(const Problem& problem);

// Fails the test where a variation's bits differ from those of the plain call.
void expect_same_bits(const Problem& problem, const Where& where,
                      const std::vector<Variation>& variations);

}  // namespace pagefill::testing
