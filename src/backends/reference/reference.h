// The operator as the formula says it, in double precision: what the fast backends are tested against.
#pragma once

#include "backend.h"

namespace pagefill {

const Backend* reference_backend();

}  // namespace pagefill
