#include "checks.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <vector>

#include "overlap.h"

namespace pagefill {
namespace {

// Bytes from the first element to the end of the last; -1 where that does not fit in an int64.
int64_t span_bytes(const TensorView& view) {
  int64_t last = 0;
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[i] == 0) return 0;
    int64_t step;
    if (__builtin_mul_overflow(view.shape[i] - 1, view.strides[i], &step) ||
        __builtin_add_overflow(last, step, &last)) {
      return -1;
    }
  }
  int64_t elements, bytes;
  if (__builtin_add_overflow(last, 1, &elements) ||
      __builtin_mul_overflow(elements, dtype_size(view.dtype), &bytes)) {
    return -1;
  }
  return bytes;
}

std::string expected_shape(Shape shape) {
  std::vector<std::string> parts;
  for (const Dimension& d : shape) {
    const bool is_a_number = d.expected == kAny || d.name == std::to_string(d.expected);
    parts.push_back(is_a_number ? d.name : fmt::format("{}={}", d.name, d.expected));
  }
  return fmt::format("[{}]", fmt::join(parts, ", "));
}

std::string expected_shapes(std::initializer_list<Shape> shapes) {
  std::vector<std::string> parts;
  for (Shape shape : shapes) parts.push_back(expected_shape(shape));
  return fmt::format("{}", fmt::join(parts, " or "));
}

bool shape_agrees(const TensorView& view, Shape shape) {
  if (view.rank != static_cast<int>(shape.size())) return false;
  int i = 0;
  for (const Dimension& d : shape) {
    if (view.shape[i] < 0 || (d.expected != kAny && view.shape[i] != d.expected)) return false;
    ++i;
  }
  return true;
}

}  // namespace

Status invalid_argument(std::string message) {
  return Status(StatusCode::kInvalidArgument, std::move(message));
}

std::string shape_string(const TensorView& view) {
  if (view.rank < 0 || view.rank > kMaxRank) return fmt::format("rank {}", view.rank);
  return fmt::format("[{}]", fmt::join(view.shape.begin(), view.shape.begin() + view.rank, ", "));
}

Status check_tensor(std::string_view name, const TensorView& view, Shape shape) {
  return check_tensor_of_shapes(name, view, {shape}, Innermost::kContiguous);
}

Status check_tensor_of_shapes(std::string_view name, const TensorView& view,
                              std::initializer_list<Shape> shapes, Innermost innermost) {
  if (!view.given()) {
    return invalid_argument(
        fmt::format("{}: expected a tensor {}, got none", name, expected_shapes(shapes)));
  }
  if (std::none_of(shapes.begin(), shapes.end(), [&](Shape s) { return shape_agrees(view, s); })) {
    return invalid_argument(fmt::format("{}: expected shape {}, got {}", name,
                                        expected_shapes(shapes), shape_string(view)));
  }
  for (int i = 0; i < view.rank; ++i) {
    if (view.strides[i] < 0) {
      return invalid_argument(fmt::format(
          "{}: expected strides >= 0, got stride {} in dimension {}", name, view.strides[i], i));
    }
  }
  if (innermost == Innermost::kContiguous && view.shape[view.rank - 1] > 1 &&
      view.strides[view.rank - 1] != 1) {
    return invalid_argument(fmt::format("{}: expected an innermost stride of 1, got {}", name,
                                        view.strides[view.rank - 1]));
  }
  const int64_t bytes = span_bytes(view);
  if (bytes < 0) {
    return invalid_argument(fmt::format(
        "{}: expected a tensor within 2^63 bytes, got shape {} with strides that reach beyond",
        name, shape_string(view)));
  }
  if (bytes > 0 && view.data == nullptr) {
    return invalid_argument(fmt::format("{}: expected data for shape {}, got a null pointer", name,
                                        shape_string(view)));
  }
  return {};
}

std::string device_string(Device device) {
  return device.type == DeviceType::kCpu ? "the CPU" : fmt::format("CUDA device {}", device.index);
}

Status check_same_device(std::initializer_list<NamedTensor> tensors) {
  const auto given = [](const NamedTensor& tensor) { return tensor.view.given(); };
  const NamedTensor* first = std::find_if(tensors.begin(), tensors.end(), given);
  if (std::all_of(first, tensors.end(), [&](const NamedTensor& tensor) {
        return !given(tensor) || tensor.view.device == first->view.device;
      })) {
    return {};
  }
  // Of two places the one where more tensors are is meant, so that the one that strays is named.
  const NamedTensor* meant = nullptr;
  std::ptrdiff_t most = 0;
  for (const NamedTensor& tensor : tensors) {
    const auto count = std::count_if(tensors.begin(), tensors.end(), [&](const NamedTensor& other) {
      return other.view.given() && other.view.device == tensor.view.device;
    });
    if (tensor.view.given() && count > most) meant = &tensor, most = count;
  }
  for (const NamedTensor& tensor : tensors) {
    if (!tensor.view.given() || tensor.view.device == meant->view.device) continue;
    return Status(StatusCode::kUnsupported,
                  fmt::format("{}: expected memory of {}, where {} is, got memory of {}",
                              tensor.name, device_string(meant->view.device), meant->name,
                              device_string(tensor.view.device)));
  }
  return {};
}

Status check_cuda_settings(const CudaSettings& cuda, const TensorView& cache,
                           std::string_view total_tokens, std::string_view max_pages) {
  if (cache.device.type == DeviceType::kCpu) {
    if (cuda.stream == nullptr && cuda.max_chunk_size == 0 && cuda.max_context_len == 0 &&
        !cuda.status.given()) {
      return {};
    }
    return invalid_argument(
        "cuda: expected no settings for a CUDA device with tensors in memory of the CPU, got some");
  }
  if (cuda.max_chunk_size < 0) {
    return invalid_argument(fmt::format("cuda.max_chunk_size: expected 0 ({}) or more, got {}",
                                        total_tokens, cuda.max_chunk_size));
  }
  if (cuda.max_context_len < 0) {
    return invalid_argument(
        fmt::format("cuda.max_context_len: expected 0 ({} * page_size) or more, got {}", max_pages,
                    cuda.max_context_len));
  }
  if (!cuda.status.given()) return {};
  PAGEFILL_RETURN_IF_ERROR(check_same_device({{"key_cache", cache}, {"cuda.status", cuda.status}}));
  PAGEFILL_RETURN_IF_ERROR(check_tensor("cuda.status", cuda.status, {{"4", 4}}));
  return check_dtype("cuda.status", cuda.status, {DType::kInt32});
}

Status check_dtype(std::string_view name, const TensorView& view,
                   std::initializer_list<DType> allowed) {
  if (std::find(allowed.begin(), allowed.end(), view.dtype) == allowed.end()) {
    std::vector<const char*> names;
    for (DType dtype : allowed) names.push_back(dtype_name(dtype));
    return invalid_argument(fmt::format("{}: expected dtype {}, got {}", name,
                                        fmt::join(names, " or "), dtype_name(view.dtype)));
  }
  if (reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(dtype_size(view.dtype)) !=
      0) {
    return invalid_argument(fmt::format("{}: expected data aligned to {} bytes ({}), got {}", name,
                                        dtype_size(view.dtype), dtype_name(view.dtype),
                                        fmt::ptr(view.data)));
  }
  return {};
}

Status check_distinct_elements(std::string_view name, const TensorView& view) {
  // Without elements there are no two that overlap.
  if (std::count(view.shape.begin(), view.shape.begin() + view.rank, 0) > 0) return {};
  std::array<int, kMaxRank> order{0, 1, 2, 3};
  std::sort(order.begin(), order.end(),
            [&](int a, int b) { return view.strides[a] < view.strides[b]; });
  int64_t covered = 1;  // elements from the first to the end of the last of the dimensions so far
  for (int d : order) {
    if (d >= view.rank || view.shape[d] <= 1) continue;
    if (view.strides[d] < covered) {
      return invalid_argument(
          fmt::format("{}: expected elements that do not overlap, got shape {} with stride {} in "
                      "dimension {}, below the {} elements that a step must pass",
                      name, shape_string(view), view.strides[d], d, covered));
    }
    covered += (view.shape[d] - 1) * view.strides[d];
  }
  return {};
}

Status check_disjoint(std::string_view name, const TensorView& view, std::string_view other_name,
                      const TensorView& other) {
  if (!view.given() || !other.given() || !share_memory(view, other)) return {};
  return invalid_argument(
      fmt::format("{}: expected memory of its own, got memory that overlaps {}", name, other_name));
}

Status check_written(std::initializer_list<NamedTensor> written,
                     std::initializer_list<NamedTensor> read) {
  for (const NamedTensor* w = written.begin(); w != written.end(); ++w) {
    if (!w->view.given()) continue;
    PAGEFILL_RETURN_IF_ERROR(check_distinct_elements(w->name, w->view));
    for (const NamedTensor& r : read) {
      PAGEFILL_RETURN_IF_ERROR(check_disjoint(w->name, w->view, r.name, r.view));
    }
    for (const NamedTensor* other = written.begin(); other != w; ++other) {
      PAGEFILL_RETURN_IF_ERROR(check_disjoint(w->name, w->view, other->name, other->view));
    }
  }
  return {};
}

}  // namespace pagefill
