#include "bench_shape.h"

#include <fmt/format.h>

#include <algorithm>

namespace pagefill::cli {

std::vector<BenchShape> standard_shapes() {
  return {
      {.chunk = 512, .context = 4096, .page_size = 16},
      {.chunk = 512, .context = 4096, .page_size = 256},
      {.chunk = 64, .context = 4096},
      {.chunk = 2048, .context = 2048},
      {.chunk = 512, .context = 4096, .head_dim = 64},
      {.chunk = 512, .context = 2048, .num_q_heads = 16, .num_kv_heads = 4, .head_dim = 256},
      {.chunk = 1, .context = 8192},
      {.chunk = 512, .context = 4096, .dtype = DType::kBFloat16},
      // Time per useful pair is to stay flat from the first shape on.
      {.chunk = 512, .context = 16384},
      {.chunk = 512, .context = 65536},
  };
}

double useful_flops(const BenchShape& shape) {
  double pairs = 0;
  for (int64_t row = 0; row < shape.chunk; ++row) {
    const int64_t position = shape.context - shape.chunk + row;
    const int64_t visible = std::min(position + 1, shape.window.value_or(position + 1));
    pairs += static_cast<double>(std::max<int64_t>(visible, 0));
  }
  const auto flops_per_pair = static_cast<double>(2 * (shape.head_dim + shape.value_dim()));
  return pairs * flops_per_pair * static_cast<double>(shape.num_q_heads * shape.batch);
}

double visible_cache_bytes(const BenchShape& shape) {
  const int64_t first_position = std::max<int64_t>(shape.context - shape.chunk, 0);
  const int64_t first_key =
      shape.window ? std::max<int64_t>(first_position - *shape.window + 1, 0) : 0;
  const int64_t bytes_per_key =
      shape.num_kv_heads * (shape.head_dim + shape.value_dim()) * dtype_size(shape.kv_dtype());
  return static_cast<double>(shape.context - first_key) *
         static_cast<double>(bytes_per_key * shape.batch);
}

std::string describe(const BenchShape& shape) {
  const std::string heads = fmt::format("{}/{}", shape.num_q_heads, shape.num_kv_heads);
  std::string dim = fmt::format("{}", shape.head_dim);
  if (shape.value_dim() != shape.head_dim) dim += fmt::format("/{}", shape.value_dim());
  return fmt::format("{:>5} @ {:<6} {:>6} x {:<3} {:>6}  {:<8}", shape.chunk, shape.context, heads,
                     dim, shape.page_size, dtype_name(shape.dtype));
}

std::string describe_options(const BenchShape& shape) {
  std::string text;
  if (shape.batch > 1) text += fmt::format("  batch {}", shape.batch);
  if (shape.kv_dtype() != shape.dtype)
    text += fmt::format("  cache {}", dtype_name(shape.kv_dtype()));
  if (shape.soft_cap) text += fmt::format("  cap {}", *shape.soft_cap);
  if (shape.window) text += fmt::format("  window {}", *shape.window);
  if (shape.sinks) text += "  sinks";
  return text;
}

}  // namespace pagefill::cli
