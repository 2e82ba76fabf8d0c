#include "kv_cache/cache_memory.h"

#include <span>

#include "checks.h"

namespace pagefill {
namespace {

struct Step {
  int64_t extent;
  int64_t stride;
};

constexpr int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

// Whether two tensors that take the same steps share an element. The second one lies `distance` elements
// behind the first; steps come largest stride first, and each passes all that the later ones reach. So of
// all pairs of indices of a step only the two nearest differences can meet.
bool share_an_element(std::span<const Step> steps, int64_t first_row, int64_t second_row,
                      int64_t distance) {
  if (steps.empty()) return -second_row < distance && distance < first_row;
  const auto [extent, stride] = steps.front();
  const int64_t nearest = floor_div(distance, stride);
  for (const int64_t difference : {nearest, nearest + 1}) {
    if (-extent < difference && difference < extent &&
        share_an_element(steps.subspan(1), first_row, second_row, distance - difference * stride)) {
      return true;
    }
  }
  return false;
}

bool step_alike(const MutableTensorView& a, const MutableTensorView& b) {
  for (int i = 0; i < 3; ++i) {
    if (a.shape[i] > 1 && a.strides[i] != b.strides[i]) return false;
  }
  return true;
}

// Caches of the same num_kv_heads, total_num_pages, page_size and strides.
bool share_an_element(const MutableTensorView& a, const MutableTensorView& b) {
  if (a.num_elements() == 0 || b.num_elements() == 0) return false;
  Step steps[3];
  for (int i = 0; i < 3; ++i) steps[i] = {a.shape[i], a.shape[i] > 1 ? a.strides[i] : 0};
  std::sort(std::begin(steps), std::end(steps),
            [](const Step& x, const Step& y) { return x.stride > y.stride; });
  const auto num_steps = static_cast<size_t>(std::count_if(
      std::begin(steps), std::end(steps), [](const Step& s) { return s.extent > 1; }));
  const auto bytes =
      static_cast<int64_t>(reinterpret_cast<intptr_t>(b.data) - reinterpret_cast<intptr_t>(a.data));
  return share_an_element({steps, num_steps}, a.shape[3], b.shape[3], bytes / dtype_size(a.dtype));
}

}  // namespace

Status check_written_caches(const MutableTensorView& key_cache,
                            const MutableTensorView& value_cache) {
  if (Status s = check_distinct_elements("key_cache", key_cache); !s.ok()) return s;
  if (Status s = check_distinct_elements("value_cache", value_cache); !s.ok()) return s;
  if (step_alike(key_cache, value_cache) && !share_an_element(key_cache, value_cache)) return {};
  return check_disjoint("value_cache", value_cache, "key_cache", key_cache);
}

}  // namespace pagefill
