#include "bench_inputs.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <type_traits>

namespace pagefill::cli {
namespace {

// SplitMix64: two multiplications a number, because a cache holds hundreds of millions of them.
class Noise {
 public:
  explicit Noise(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // Four uniform numbers of 16 bits, added and scaled to variance 1.
  float normal() {
    const uint64_t u = bits();
    const auto sum =
        static_cast<float>((u & 0xffff) + ((u >> 16) & 0xffff) + ((u >> 32) & 0xffff) + (u >> 48));
    return (sum / 65536.0f - 2.0f) * 1.7320508f;  // the variance of the sum is 4 / 12
  }
  static constexpr float kLargest = 2 * 1.7320508f;

 private:
  uint64_t state_;
};

// The scale that makes the largest noise the largest number of the dtype, as append_kv chooses scales.
float noise_scale(DType dtype) {
  switch (dtype) {
    case DType::kInt8:
      return Noise::kLargest / 127;
    case DType::kFloat8E4M3:
      return Noise::kLargest / float8_e4m3::kLargest;
    case DType::kFloat8E5M2:
      return Noise::kLargest / float8_e5m2::kLargest;
    default:
      return 1;
  }
}

template <typename T>
void fill(const AlignedMemory& memory, Noise& noise) {
  auto* elements = reinterpret_cast<T*>(memory.data());
  const float scale = noise_scale(DTypeOf<T>::value);
  for (size_t i = 0; i < memory.size() / sizeof(T); ++i) {
    const float element = noise.normal() / scale;
    if constexpr (std::is_same_v<T, int8_t>) {
      elements[i] = static_cast<int8_t>(element);  // rounded to zero: as good as any, and faster
    } else {
      elements[i] = T(element);
    }
  }
}

AlignedMemory noisy_memory(DType dtype, int64_t num_elements, Noise& noise) {
  AlignedMemory memory(static_cast<size_t>(num_elements * dtype_size(dtype)));
  if (dtype == DType::kFloat32) fill<float>(memory, noise);
  if (dtype == DType::kBFloat16) fill<bfloat16>(memory, noise);
  if (dtype == DType::kFloat16) fill<float16>(memory, noise);
  if (dtype == DType::kInt8) fill<int8_t>(memory, noise);
  if (dtype == DType::kFloat8E4M3) fill<float8_e4m3>(memory, noise);
  if (dtype == DType::kFloat8E5M2) fill<float8_e5m2>(memory, noise);
  return memory;
}

}  // namespace

BenchInputs::BenchInputs(const BenchShape& shape)
    : page_table_(shape.batch * shape.num_pages()),
      query_starts_(shape.batch + 1),
      context_lens_(shape.batch, static_cast<int32_t>(shape.context)) {
  Noise noise(1);
  const int64_t tokens = shape.batch * shape.chunk, pages = shape.batch * shape.num_pages();
  const int64_t slots = shape.num_kv_heads * pages * shape.page_size;
  const int64_t heads = shape.num_q_heads, kv_heads = shape.num_kv_heads;
  const DType dtype = shape.dtype, kv_dtype = shape.kv_dtype();
  query_memory_ = noisy_memory(dtype, tokens * heads * shape.head_dim, noise);
  key_memory_ = noisy_memory(kv_dtype, slots * shape.head_dim, noise);
  value_memory_ = noisy_memory(kv_dtype, slots * shape.value_dim(), noise);
  output_memory_ = noisy_memory(dtype, tokens * heads * shape.value_dim(), noise);

  std::iota(page_table_.begin(), page_table_.end(), 0);
  std::shuffle(page_table_.begin(), page_table_.end(), std::mt19937_64(1));
  for (int64_t s = 0; s <= shape.batch; ++s) {
    query_starts_[static_cast<size_t>(s)] = static_cast<int32_t>(s * shape.chunk);
  }

  BenchOperands& o = operands_;
  o.query = {query_memory_.data(), dtype, {tokens, heads, shape.head_dim}};
  o.key_cache = {key_memory_.data(), kv_dtype, {kv_heads, pages, shape.page_size, shape.head_dim}};
  o.value_cache = {
      value_memory_.data(), kv_dtype, {kv_heads, pages, shape.page_size, shape.value_dim()}};
  o.output = {output_memory_.data(), dtype, {tokens, heads, shape.value_dim()}};
  o.query_starts = query_starts_;
  o.context_lens = context_lens_;
  o.page_table = TensorView(page_table_.data(), {shape.batch, shape.num_pages()});
  if (is_quantised(kv_dtype)) {
    key_scale_.assign(static_cast<size_t>(slots), noise_scale(kv_dtype));
    value_scale_ = key_scale_;
    o.options.key_scale = {key_scale_.data(), {kv_heads, pages, shape.page_size}};
    o.options.value_scale = {value_scale_.data(), {kv_heads, pages, shape.page_size}};
  }
  o.options.attn_logits_soft_cap = shape.soft_cap;
  o.options.sliding_window = shape.window;
  if (shape.sinks) {
    sink_logits_.resize(heads);
    for (float& logit : sink_logits_) logit = noise.normal();
    o.options.sinks = sink_logits_;
  }
}

double input_bytes(const BenchShape& shape) {
  const auto slots = static_cast<double>(shape.num_pages()) * static_cast<double>(shape.page_size);
  const auto dims = static_cast<double>(shape.head_dim) + static_cast<double>(shape.value_dim());
  const double rows = slots * static_cast<double>(shape.num_kv_heads);
  const double scales = is_quantised(shape.kv_dtype()) ? 2 * rows * sizeof(float) : 0;
  return static_cast<double>(shape.batch) *
         (scales +
          dims * (rows * static_cast<double>(dtype_size(shape.kv_dtype())) +
                  static_cast<double>(shape.chunk) * static_cast<double>(shape.num_q_heads) *
                      static_cast<double>(dtype_size(shape.dtype))));
}

}  // namespace pagefill::cli
