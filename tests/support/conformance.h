// One problem on everything that can run it, against the oracle.
#pragma once

#include "support/problem.h"

namespace pagefill::testing {

// Runs the problem on all targets; each with another layout, so that no layout is a target's own.
void expect_conformance(const Problem& problem);

}  // namespace pagefill::testing
