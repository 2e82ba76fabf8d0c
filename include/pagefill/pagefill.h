/* The C interface of pagefill: attention over a paged KV cache. C99, usable from C++.
 *
 * Query i of a chunk stands at absolute position p = context_len - chunk_size + i. It sees key j when
 * j <= p, j < context_len and, with a sliding window W, j >= p - W + 1. Query head h reads KV head
 * h / (num_q_heads / num_kv_heads). docs/conventions.md has the formula.
 *
 * Structs begin with struct_size, the size that the caller was compiled with; the pagefill_*_init
 * functions set it and the defaults. A size that this library does not know is refused.
 *
 * Every fallible function returns a pagefill_status and on error changes nothing. The message names
 * the argument, what was expected and what came. A null pointer is an error unless said otherwise.
 * Nothing in here throws, prints or ends the process.
 */
#ifndef PAGEFILL_PAGEFILL_H_
#define PAGEFILL_PAGEFILL_H_

#include "pagefill/c/attention.h"
#include "pagefill/c/backend.h"
#include "pagefill/c/executor.h"
#include "pagefill/c/kv_cache.h"
#include "pagefill/c/status.h"
#include "pagefill/c/tensor.h"

#endif /* PAGEFILL_PAGEFILL_H_ */
