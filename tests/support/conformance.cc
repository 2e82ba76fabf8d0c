#include "support/conformance.h"

#include <gtest/gtest.h>

#include "support/oracle.h"
#include "support/run.h"
#include "support/tolerance.h"

namespace pagefill::testing {

void expect_conformance(const Problem& problem) {
  const Expected expected = oracle(problem);
  uint32_t i = 0;
  for (const Where& where : all_targets()) {
    const Layout layout = {.page_size = i % 2 == 0 ? 16 : 5,
                           .cache_order = kCacheOrders[i % 4],
                           .placement = ++i,
                           .unused = Unused::kNaN};
    SCOPED_TRACE(describe(where) + ", " + describe(layout));
    expect_close(run(problem, layout, where), expected, problem);
  }
}

}  // namespace pagefill::testing
