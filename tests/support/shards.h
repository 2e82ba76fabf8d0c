// Attention over shards of a context, and their merge.
#pragma once

#include "support/problem.h"
#include "support/run.h"

namespace pagefill::testing {

// The decode rows of a problem against the keys before `split`, and against those from it on. A
// shard of earlier keys ends its context there, so each sequence has one row: all of the shard is
// before it. A sink belongs to the late shard only.
struct Shards {
  Problem early, late;
};
Shards split_context(const Problem& decode, int64_t split);

// The results as tensors without gaps.
TensorView output_view(const Results& results);
MutableTensorView output_view(Results& results);
TensorView lse_view(const Results& results);
MutableTensorView lse_view(Results& results);

Status merge(const Results& a, const Results& b, Results& merged);

}  // namespace pagefill::testing
