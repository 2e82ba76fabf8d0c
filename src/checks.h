// The rules that every argument of every call obeys, once. A check returns an empty Status, or the error
// that names the argument, what was expected and what came.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "pagefill/executor.h"
#include "pagefill/status.h"
#include "pagefill/tensor.h"

// Leaves a function that returns a Status or a Result with the error, where there is one.
#define PAGEFILL_RETURN_IF_ERROR(expression) \
  if (Status status_ = (expression); !status_.ok()) return status_

namespace pagefill {

Status invalid_argument(std::string message);

// An extent that a shape rule leaves free.
inline constexpr int64_t kAny = -1;

struct Dimension {
  const char* name;  // as the messages call it: "num_kv_heads"
  int64_t expected = kAny;
};

using Shape = std::initializer_list<Dimension>;

enum class Innermost { kContiguous, kAnyStride };

// Given, of this rank and these extents, strides >= 0 with an innermost one of 1, every byte
// addressable, data not null (unless there are no elements).
Status check_tensor(std::string_view name, const TensorView& view, Shape shape);

// The same, of one of several shapes.
Status check_tensor_of_shapes(std::string_view name, const TensorView& view,
                              std::initializer_list<Shape> shapes, Innermost innermost);

// One of these dtypes, and data aligned to it.
Status check_dtype(std::string_view name, const TensorView& view,
                   std::initializer_list<DType> allowed);

// No two elements of something that is written share memory.
Status check_distinct_elements(std::string_view name, const TensorView& view);

// Something that is written shares no memory with another argument.
Status check_disjoint(std::string_view name, const TensorView& view, std::string_view other_name,
                      const TensorView& other);

struct NamedTensor {
  const char* name;
  TensorView view;  // checked, or not given
};

// Nothing that is written has two elements in one place, or shares memory with what is read or with what
// else is written. Tensors may lie interleaved in one buffer.
Status check_written(std::initializer_list<NamedTensor> written,
                     std::initializer_list<NamedTensor> read);

// All that are given lie in one place.
Status check_same_device(std::initializer_list<NamedTensor> tensors);

// Settings of a call whose tensors lie where `cache` does: none on the CPU. The names are those of the dimensions
// that the maxima's defaults come from.
Status check_cuda_settings(const CudaSettings& cuda, const TensorView& cache,
                           std::string_view total_tokens = "total_tokens",
                           std::string_view max_pages = "max_pages");

// "the CPU", "CUDA device 0".
std::string device_string(Device device);

// "[2, 9, 16, 64]".
std::string shape_string(const TensorView& view);

}  // namespace pagefill
