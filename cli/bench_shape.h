// What `pagefill bench` times, and how much useful work it is.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pagefill/tensor.h"

namespace pagefill::cli {

struct BenchShape {
  int64_t batch = 1;  // sequences of the same lengths in one call
  int64_t chunk = 512;
  int64_t context = 4096;
  int64_t num_q_heads = 32;
  int64_t num_kv_heads = 8;
  int64_t head_dim = 128;
  std::optional<int64_t> v_head_dim{};  // default: head_dim
  int64_t page_size = 16;
  DType dtype = DType::kFloat32;
  std::optional<DType> cache_dtype{};  // default: dtype
  std::optional<float> soft_cap{};
  std::optional<int64_t> window{};
  bool sinks = false;

  int64_t value_dim() const { return v_head_dim.value_or(head_dim); }
  DType kv_dtype() const { return cache_dtype.value_or(dtype); }
  int64_t num_pages() const { return (context + page_size - 1) / page_size; }
};

// The shapes that are timed when none is given.
std::vector<BenchShape> standard_shapes();

// A multiply and an add for each element of the key and of the value of every visible (query, key) pair of
// each head: 4 * head_dim where value and key are as long.
double useful_flops(const BenchShape& shape);

// The keys and values that some query of the chunk sees.
double visible_cache_bytes(const BenchShape& shape);

// In columns, under kShapeHeadings: "  512 @ 4096   32/8 x 128    16  float32 ".
inline constexpr const char* kShapeHeadings = "chunk @ context heads x dim  page  dtype   ";
std::string describe(const BenchShape& shape);
// "  cap 30  window 1024", or nothing.
std::string describe_options(const BenchShape& shape);

}  // namespace pagefill::cli
