// Caches that lie in one buffer: refused where they share an element, taken where they do not.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <array>
#include <set>
#include <vector>

#include "pagefill/kv_cache.h"

namespace pagefill::testing {
namespace {

using Strides = std::array<int64_t, 3>;

// Strides of a [heads, pages, slots, row] with the dimensions in any order and gaps between their steps.
Strides any_strides(const Strides& shape, int64_t row) {
  std::array<int, 3> order = {0, 1, 2};
  const int turns = *rc::gen::inRange(0, 6);
  for (int i = 0; i < turns; ++i) std::next_permutation(order.begin(), order.end());
  Strides strides{};
  int64_t reach = row;
  for (int d : order) {
    strides[d] = reach + *rc::gen::inRange<int64_t>(0, 20);
    reach = (shape[d] - 1) * strides[d] + reach;
  }
  return strides;
}

MutableTensorView cache(float* data, const Strides& shape, int64_t row, const Strides& strides) {
  return {data,
          DType::kFloat32,
          {shape[0], shape[1], shape[2], row},
          {strides[0], strides[1], strides[2], 1}};
}

std::set<const float*> elements(const MutableTensorView& view) {
  std::set<const float*> all;
  for (int64_t head = 0; head < view.shape[0]; ++head) {
    for (int64_t page = 0; page < view.shape[1]; ++page) {
      for (int64_t slot = 0; slot < view.shape[2]; ++slot) {
        for (int64_t d = 0; d < view.shape[3]; ++d) {
          all.insert(static_cast<const float*>(view.data) + head * view.strides[0] +
                     page * view.strides[1] + slot * view.strides[2] + d);
        }
      }
    }
  }
  return all;
}

struct TwoCaches {
  std::vector<float> memory;
  MutableTensorView key_cache, value_cache;

  explicit TwoCaches(bool alike) {
    const Strides shape = {*rc::gen::inRange<int64_t>(1, 4), *rc::gen::inRange<int64_t>(1, 4),
                           *rc::gen::inRange<int64_t>(1, 4)};
    const int64_t head_dim = *rc::gen::element(8, 16), v_head_dim = *rc::gen::element(8, 16);
    const Strides strides = any_strides(shape, std::max(head_dim, v_head_dim));
    const Strides value_strides = alike ? strides : any_strides(shape, v_head_dim);
    const int64_t distance = *rc::gen::inRange<int64_t>(-200, 200);
    memory.resize(4000);
    key_cache = cache(memory.data() + 200, shape, head_dim, strides);
    value_cache = cache(memory.data() + 200 + distance, shape, v_head_dim, value_strides);
  }

  bool overlap() const {
    const auto keys = elements(key_cache), values = elements(value_cache);
    return std::any_of(keys.begin(), keys.end(),
                       [&](const float* element) { return values.count(element) > 0; });
  }
};

RC_GTEST_PROP(CachesInOneBuffer, AreToldApartExactlyWhereTheyStepAlike, ()) {
  const TwoCaches caches(true);
  const Status status = copy_pages({}, caches.key_cache, caches.value_cache);
  RC_ASSERT(status.ok() == !caches.overlap());
}

RC_GTEST_PROP(CachesInOneBuffer, AreNeverTakenWhereTheyOverlap, ()) {
  const TwoCaches caches(false);
  if (caches.overlap()) RC_ASSERT(!copy_pages({}, caches.key_cache, caches.value_cache).ok());
}

}  // namespace
}  // namespace pagefill::testing
