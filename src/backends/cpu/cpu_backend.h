// The tile kernel on the processor's vector units, on as many threads as the call has.
#pragma once

#include "backend.h"

namespace pagefill {

const Backend* cpu_backend();

}  // namespace pagefill
