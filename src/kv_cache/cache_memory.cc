#include "kv_cache/cache_memory.h"

#include "checks.h"

namespace pagefill {

Status check_written_caches(const MutableTensorView& key_cache,
                            const MutableTensorView& value_cache) {
  PAGEFILL_RETURN_IF_ERROR(check_distinct_elements("key_cache", key_cache));
  PAGEFILL_RETURN_IF_ERROR(check_distinct_elements("value_cache", value_cache));
  return check_disjoint("value_cache", value_cache, "key_cache", key_cache);
}

}  // namespace pagefill
