#include "overlap.h"

#include <array>

namespace pagefill {
namespace {

struct Step {
  int64_t extent;
  int64_t stride;  // in bytes
};

// The bytes of a tensor relative to its first one.
struct Footprint {
  std::array<Step, kMaxRank> steps{};  // largest stride first
  size_t num_steps = 0;
  int64_t element_size = 0;

  explicit Footprint(const TensorView& view) : element_size(dtype_size(view.dtype)) {
    for (int i = 0; i < view.rank; ++i) {
      if (view.shape[i] > 1) insert({view.shape[i], view.strides[i] * element_size});
    }
  }

  void insert(const Step& step) {
    size_t at = num_steps++;
    for (; at > 0 && steps[at - 1].stride < step.stride; --at) steps[at] = steps[at - 1];
    steps[at] = step;
  }

  // From the first byte to the end of the last, without the `num_outer` outermost steps.
  int64_t reach(size_t num_outer) const {
    int64_t bytes = element_size;
    for (size_t i = num_outer; i < num_steps; ++i) bytes += (steps[i].extent - 1) * steps[i].stride;
    return bytes;
  }
};

constexpr int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

// b's first byte lies `distance` behind a's, at some index of each of the `depth` outermost steps.
bool meet(const Footprint& a, const Footprint& b, size_t depth, int64_t distance) {
  const bool at_end = depth == a.num_steps || depth == b.num_steps;
  const int64_t stride = at_end ? 0 : a.steps[depth].stride;
  if (at_end || stride != b.steps[depth].stride || a.reach(depth + 1) > stride ||
      b.reach(depth + 1) > stride) {
    return distance < a.reach(depth) && -distance < b.reach(depth);
  }
  // A step passes all that lies below it, so only a's two steps around b can meet it.
  const int64_t before = floor_div(distance, stride);
  for (const int64_t steps : {before, before + 1}) {  // of a, more than of b
    const bool exists = -b.steps[depth].extent < steps && steps < a.steps[depth].extent;
    if (exists && meet(a, b, depth + 1, distance - steps * stride)) return true;
  }
  return false;
}

// From the first byte to the end of the last; 0 where there are no elements.
int64_t extent_bytes(const TensorView& view) {
  int64_t last = 0;
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[i] == 0) return 0;
    last += (view.shape[i] - 1) * view.strides[i];
  }
  return (last + 1) * dtype_size(view.dtype);
}

}  // namespace

bool share_memory(const TensorView& a, const TensorView& b) {
  const int64_t a_bytes = extent_bytes(a), b_bytes = extent_bytes(b);
  if (a_bytes == 0 || b_bytes == 0) return false;
  const auto distance =
      static_cast<int64_t>(reinterpret_cast<intptr_t>(b.data) - reinterpret_cast<intptr_t>(a.data));
  if (distance >= a_bytes || -distance >= b_bytes) return false;
  return meet(Footprint(a), Footprint(b), 0, distance);
}

}  // namespace pagefill
