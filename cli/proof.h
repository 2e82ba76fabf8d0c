// The proofs that `verify` gives: variants of a case whose results must have the same bits.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "case_file.h"
#include "pagefill/executor.h"
#include "pagefill/status.h"

namespace pagefill::cli {

struct Proof {
  int num_variants = 0;
  std::string failure;  // the first variant that differs, and where; empty: none does
  bool holds() const { return failure.empty(); }
};

// Told of each variant before it runs.
using OnVariant = std::function<void(std::string_view variant)>;

// What a proof starts from: a case, its result and how it ran.
struct Claim {
  const Case& c;
  const State& original;
  const Context& context;
  OnVariant on_variant;
};

// Fills every slot that no row attends to, and its scales, with NaN or infinities, every table entry whose page holds no key
// that is attended to with -1 or 2^31 - 1, and the rows of query behind the batch with NaN.
Result<Proof> prove_unused_memory_is_unread(const Claim& claim);

// Cuts the pages anew and shuffles them, cuts the chunks, changes threads and strides. Where masked keys
// count, a chunk's end decides which keys there are, so chunks stay whole.
Result<Proof> prove_invariance(const Claim& claim);

// Runs a variant and notes in the proof where its bits differ. An error is one of the library, which took
// the original.
Status run_variant(const Claim& claim, Proof& proof, std::string_view variant,
                   const std::function<Result<State>()>& run);

}  // namespace pagefill::cli
