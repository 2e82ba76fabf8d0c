// What append_kv and copy_pages share: caches that are written, and the threads that write them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "executor_internal.h"
#include "geometry.h"
#include "pagefill/status.h"
#include "pagefill/tensor.h"

namespace pagefill {

enum class Cache { kKey, kValue };

// Calls write(cache, head_begin, head_end) so that each head of each cache is written by one thread. So
// writes to the same slot keep their order.
template <typename Write>
Status write_heads(const Context& context, int num_threads, int64_t num_kv_heads,
                   const Write& write) {
  const int64_t num_heads =
      2 * num_kv_heads;  // those of the key cache, then those of the value cache
  const int64_t heads_per_task = ceil_div(num_heads, num_threads);
  return run_parallel(context, num_threads, ceil_div(num_heads, heads_per_task), [&](int64_t task) {
    const int64_t begin = task * heads_per_task;
    const int64_t end = std::min(begin + heads_per_task, num_heads);
    if (begin < num_kv_heads) write(Cache::kKey, begin, std::min(end, num_kv_heads));
    if (end > num_kv_heads) {
      write(Cache::kValue, std::max(begin - num_kv_heads, int64_t{0}), end - num_kv_heads);
    }
  });
}

}  // namespace pagefill
