#include "pagefill/tensor.h"

namespace pagefill {
namespace {

struct DTypeRow {
  const char* name;
  int64_t size;
};

// Indexed by DType.
constexpr DTypeRow kDTypes[] = {
    {"float32", 4}, {"bfloat16", 2}, {"float16", 2},       {"int32", 4},       {"float64", 8},
    {"int64", 8},   {"int8", 1},     {"float8_e4m3fn", 1}, {"float8_e5m2", 1},
};

constexpr DTypeRow kUnknown = {"an unknown dtype", 1};

const DTypeRow& row(DType dtype) {
  const auto index = static_cast<size_t>(dtype);
  return index < std::size(kDTypes) ? kDTypes[index] : kUnknown;
}

}  // namespace

const char* dtype_name(DType dtype) { return row(dtype).name; }
int64_t dtype_size(DType dtype) { return row(dtype).size; }

}  // namespace pagefill
