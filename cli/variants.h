// Cases that say the same as a given one in other memory.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "case_file.h"
#include "tensor.h"

namespace pagefill::cli {

// What unused memory is filled with.
struct Poison {
  const char* name;
  float even_slots, odd_slots;
  int32_t entry;
};
inline constexpr std::array kPoisons{
    Poison{"NaN and -1 in unused memory", std::numeric_limits<float>::quiet_NaN(),
           std::numeric_limits<float>::quiet_NaN(), -1},
    Poison{"infinities and 2^31 - 1 in unused memory", std::numeric_limits<float>::infinity(),
           -std::numeric_limits<float>::infinity(), std::numeric_limits<int32_t>::max()},
};

// Poison in every slot that no row attends to, its scales included, and in every table entry whose page holds no key that is
// attended to; NaN in the rows of query behind the batch.
Case poisoned(const Case& c, const Poison& poison);

// The keys and values that are attended to, and their scales, in pages of another size, shuffled, among NaN.
Case repaged(const Case& c, int64_t page_size);

Tensor filled_with_nan(DType dtype, std::vector<int64_t> shape);

void copy_elements(const TensorView& from, int64_t from_offset, const MutableTensorView& to,
                   int64_t to_offset, int64_t count);

}  // namespace pagefill::cli
