#include "kv_cache/cache_memory.h"

#include "checks.h"
#include "overlap.h"

namespace pagefill {

Status check_written_caches(const MutableTensorView& key_cache,
                            const MutableTensorView& value_cache) {
  if (Status s = check_distinct_elements("key_cache", key_cache); !s.ok()) return s;
  if (Status s = check_distinct_elements("value_cache", value_cache); !s.ok()) return s;
  if (!share_memory(key_cache, value_cache)) return {};
  return invalid_argument(
      "value_cache: expected memory of its own, got memory that overlaps key_cache");
}

}  // namespace pagefill
