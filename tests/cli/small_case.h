// Cases that are small, and complete.
#pragma once

#include "safetensors.h"

namespace pagefill::cli {

// chunk_size 5 at context_len 11, 4 query heads over 2, head_dim 8 and v_head_dim 16, pages of 4.
Safetensors small_sequence();

// The same as int8, with a scale for each slot of the keys and each KV head of the values.
Safetensors small_quantised();

// A chunk of 5 at 11, a token at 6 and an empty sequence, of one cache; a row of padding; sinks and
// kv_start. The window leaves the first sequence's first page unused.
Safetensors small_batch();

}  // namespace pagefill::cli
